"""The process that parses one document: `python -m memweave.agents.tools.document_parser KIND FILE`.

It prints one JSON object: {"text": ...} or {"error": ...}. It knows nothing of tools or agents.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

MEMORY: Final = 1_000_000_000
"""Bytes that parsing may use, where the system can tell."""
UNPACKED: Final = 200_000_000
"""Bytes of an Office file when unpacked."""
TEXT: Final = 5_000_000
"""Characters of the text of a document; the rest is left out."""
ROWS: Final = 20_000
PAGES: Final = 2_000


class Unreadable(Exception):
    """The file is not what its name says, or too large."""


def pdf(file: Path) -> str:
    """Return the text of a PDF, page by page."""
    from pypdf import PdfReader

    if b"%PDF-" not in file.read_bytes()[:1024]:
        raise Unreadable("is no PDF file. Use another source.")
    reader = PdfReader(file)
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("is encrypted and needs a password. Use another source.")
    pages, parts, size = len(reader.pages), list[str](), 0
    for number, page in enumerate(reader.pages[:PAGES], start=1):
        parts.append(f"## Page {number}\n\n{page.extract_text().strip()}")
        size += len(parts[-1])
        if size > TEXT:
            break
    text = "\n\n".join(parts)
    if len(parts) == pages:
        return text
    # At the head: whoever reads the first part of a long text alone has to know it too.
    read = f"{len(parts)} pages" if size <= TEXT else f"{TEXT} characters, up to page {len(parts)},"
    note = f"[The document has {pages} pages. Its first {read} were read; the rest was left out.]\n\n"
    return note + text[: max(TEXT - len(note), 0)]


def docx(file: Path) -> str:
    """Return a Word document as Markdown."""
    import mammoth

    _check_archive(file, "word/document.xml", "Word")
    with file.open("rb") as stream:
        made = mammoth.convert_to_html(stream, convert_image=mammoth.images.img_element(lambda image: {"src": ""}))
    return _markdown(made.value)


def xlsx(file: Path) -> str:
    """Return the sheets of a workbook as tables of tab-separated values."""
    from openpyxl import load_workbook

    _check_archive(file, "xl/workbook.xml", "Excel")
    book = load_workbook(file, read_only=True, data_only=True)
    parts: list[str] = []
    for sheet in book.worksheets:
        lines = [f"## Sheet {sheet.title}", ""]
        for number, row in enumerate(sheet.iter_rows(values_only=True)):
            if number >= ROWS:
                lines.append(f"[More than {ROWS} rows; the rest was left out.]")
                break
            lines.append("\t".join("" if value is None else " ".join(str(value).split()) for value in row))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def pptx(file: Path) -> str:
    """Return the text, tables and notes of a presentation, slide by slide."""
    from pptx import Presentation

    _check_archive(file, "ppt/presentation.xml", "PowerPoint")
    parts: list[str] = []
    for number, slide in enumerate(Presentation(str(file)).slides, start=1):
        lines = [f"## Slide {number}", ""]
        for shape in slide.shapes:
            lines += _shape(shape)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            lines.append(f"Notes: {slide.notes_slide.notes_text_frame.text}")
        parts.append("\n".join(line for line in lines))
    return "\n\n".join(parts)


def html(file: Path) -> str:
    """Return a page as Markdown, without scripts, styles and images."""
    return _markdown(file.read_bytes())


def _shape(shape: Any) -> list[str]:
    if shape.has_text_frame:
        return [shape.text_frame.text]
    if getattr(shape, "has_table", False):
        return ["\t".join(cell.text for cell in row.cells) for row in shape.table.rows]
    return [line for each in getattr(shape, "shapes", ()) for line in _shape(each)]


def _markdown(page: str | bytes) -> str:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(page, "html.parser")
    for each in soup(["script", "style", "noscript", "template", "svg", "img", "iframe"]):
        each.decompose()
    text = MarkdownConverter(heading_style="ATX").convert_soup(soup)
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(line for line, before in zip(lines, ["", *lines], strict=False) if line or before).strip()


def _check_archive(file: Path, part: str, name: str) -> None:
    if file.read_bytes()[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise Unreadable(f"is encrypted, or in the old binary format of {name}. Use another source.")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError):
        raise Unreadable(f"is no {name} file. Use another source.") from None
    if part not in {info.filename for info in infos}:
        raise Unreadable(f"is no {name} file. Use another source.")
    if sum(info.file_size for info in infos) > UNPACKED:
        raise Unreadable(f"is larger than {UNPACKED} bytes when unpacked and is not read. Use another source.")


READERS: Final[Mapping[str, Callable[[Path], str]]] = {
    "pdf": pdf,
    "docx": docx,
    "xlsx": xlsx,
    "pptx": pptx,
    "html": html,
}


def main(kind: str, name: str) -> dict[str, str]:
    """Return the text of a file, or why there is none."""
    try:
        text = READERS[kind](Path(name))
    except Unreadable as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "needs more memory than is allowed. Use another source."}
    except ImportError as error:
        return {"error": f"cannot be read here: {error.name} is not installed (pip install 'memweave[tools]')."}
    except Exception as error:  # the parsers raise whatever a broken file makes them stumble over
        return {"error": f"is damaged and cannot be read ({type(error).__name__}: {error!s:.200}). Use another source."}
    if not text.strip():
        return {"text": "[The document holds no text; it may consist of images.]"}
    return {"text": text if len(text) <= TEXT else f"{text[:TEXT]}\n[The rest was left out.]"}


if __name__ == "__main__":
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with contextlib.redirect_stdout(io.StringIO()):  # standard output is for the answer alone
        found = main(sys.argv[1], sys.argv[2])
    sys.stdout.write(json.dumps(found))
