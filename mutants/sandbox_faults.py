"""Faults in the sandbox: limits, what a program sees, and what is left of it. Each leaves the other guarantees in place."""

from __future__ import annotations

from fault import Fault

ATTACKS = "tests/agents/tools/test_sandbox_attacks.py"
USE = "tests/agents/tools/test_sandbox.py"

SANDBOX = [
    Fault(
        "time-of-children-is-free",
        "CPU time of processes that ended does not count",
        "agents/tools/sandbox_launch.py",
        ".split()[11:15]",
        ".split()[11:13]",
        (f"{ATTACKS}::test_cpu_time_of_processes_that_ended_counts",),
    ),
    Fault(
        "memory-of-one-process-alone",
        "memory is limited for each process, and not for all together",
        "agents/tools/sandbox_launch.py",
        "memory += int(line.split()[1]) * 1024",
        "memory = max(memory, int(line.split()[1]) * 1024)",
        (f"{ATTACKS}::test_memory_of_several_processes",),
    ),
    Fault(
        "threads-are-free",
        "threads do not count as processes",
        "agents/tools/sandbox_launch.py",
        "threads += len(tasks)",
        "threads += 1",
        (f"{ATTACKS}::test_a_bomb_of_threads",),
    ),
    Fault(
        "output-is-not-stopped",
        "a program that prints too much goes on printing",
        "agents/tools/sandbox_launch.py",
        '            self.stop("output")\n',
        "            pass\n",
        (f"{ATTACKS}::test_a_hundred_megabytes_of_output",),
    ),
    Fault(
        "no-bound-by-the-kernel",
        "only the supervisor, who looks now and then, bounds processes",
        "agents/tools/sandbox_inside.py",
        "        resource.RLIMIT_NPROC: (processes, processes),\n",
        "",
        (f"{ATTACKS}::test_the_kernel_itself_bounds_processes",),
    ),
    Fault(
        "daemons-go-on",
        "what a program left behind runs on after it",
        "agents/tools/sandbox_inside.py",
        "        os.kill(-1, signal.SIGKILL)  # all but process 1 itself\n",
        "        pass\n",
        (f"{ATTACKS}::test_a_daemon_does_not_outlive_the_call",),
    ),
    Fault(
        "large-socket-buffers",
        "memory of the kernel's can be taken through buffers of sockets",
        "agents/tools/sandbox_kernel.py",
        "(7, 8, 32, 33)",
        "(32, 33)",
        (f"{ATTACKS}::test_buffers_of_sockets_cannot_grow_beyond_the_default",),
    ),
    Fault(
        "installed-packages-are-seen",
        "programs see what is installed beside the standard library",
        "agents/tools/sandbox_run.py",
        'for name in ("site-packages", "dist-packages")]',
        'for name in ("dist-packages",)]',
        (f"{ATTACKS}::test_installed_packages_are_not_there",),
    ),
    Fault(
        "missing-guarantee-is-passed-over",
        "what the kernel refused is not told as such",
        "agents/tools/sandbox_run.py",
        '    if "missing" in told:\n',
        "    if False:\n",
        ("tests/agents/tools/test_sandbox_machine.py::test_what_the_kernel_refuses_is_named",),
    ),
    Fault(
        "two-calls-in-one-folder",
        "two calls of one run work in the same folder at once, and one result is lost",
        "agents/tools/sandbox_folders.py",
        "(self._free > 0 and run not in self._busy)",
        "self._free > 0",
        (f"{USE}::test_calls_of_one_run_come_one_after_the_other",),
    ),
    Fault(
        "a-folder-kept-in-part",
        "a folder that could not be packed whole is kept all the same, and nobody is told",
        "agents/tools/sandbox_run.py",
        'packed = told.get("packed") is True and not told["lost"]',
        'packed = told.get("packed") is not None and not told["lost"]',
        (f"{USE}::test_a_folder_that_cannot_be_kept_is_told",),
    ),
]
