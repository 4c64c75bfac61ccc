"""`read_document` reads real files of one folder, and says by name what is wrong with the others."""

from __future__ import annotations

import asyncio
import io
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("pypdf")
from memweave.agents.tools import document_parser
from memweave.agents.tools.documents import read_document
from memweave.errors import InputError, SettingsError

PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 100]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>endobj\n"
    b"4 0 obj<</Length 43>>stream\nBT /F1 12 Tf 20 50 Td (Hello from PDF) Tj ET\nendstream endobj\n"
    b"5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R/Size 6>>\nstartxref\n0\n%%EOF\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from openpyxl import Workbook
    from pptx import Presentation
    from pypdf import PdfReader, PdfWriter

    root = tmp_path_factory.mktemp("documents")
    (root / "a.pdf").write_bytes(PDF)
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(PDF)))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(root / "locked.pdf")
    many = PdfWriter()
    for _ in range(2_003):
        many.add_blank_page(width=72, height=72)
    many.write(root / "many.pdf")
    (root / "fake.pdf").write_bytes(b"plain words")
    (root / "fake.docx").write_bytes(b"plain words")
    book = Workbook()
    book.active.append(["tea", 3])
    book.save(root / "a.xlsx")
    show = Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text = "Hello from slides"
    show.save(root / "a.pptx")
    with zipfile.ZipFile(root / "a.docx", "w") as made:
        made.writestr(
            "[Content_Types].xml", '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'
        )
        made.writestr(
            "_rels/.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
            'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
            'Target="word/document.xml"/></Relationships>',
        )
        made.writestr("word/document.xml", '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r>'
                      "<w:t>Hello from Word</w:t></w:r></w:p></w:body></w:document>")  # fmt: skip
    with zipfile.ZipFile(root / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("word/document.xml", b"0" * 210_000_000)
    (root / "a.html").write_text("<h1>Hello</h1><script>x()</script>")
    (root / "a.txt").write_text("0123456789")
    (root / "a.exe").write_bytes(b"MZ")
    (root.parent / "secret.txt").write_text("hidden")
    (root / "link.txt").symlink_to(root.parent / "secret.txt")
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.pdf", "Hello from PDF"), ("a.docx", "Hello from Word"), ("a.xlsx", "tea\t3"), ("a.pptx", "Hello from slides"),
     ("a.html", "# Hello"), ("a.txt", "0123456789")],
)  # fmt: skip
def test_it_reads(folder: Path, name: str, text: str) -> None:
    found = asyncio.run(read_document(folder).ainvoke({"path": name}))
    assert text in found
    assert "x()" not in found
    assert not found.startswith("Error")


def test_pages_that_are_too_many_are_left_out_with_a_word_at_the_head(folder: Path) -> None:
    found = read_document(folder, max_chars=1_000_000).invoke({"path": "many.pdf"})
    note = "[The document has 2003 pages. Its first 2000 pages were read; the rest was left out.]"
    assert found.startswith(note)
    assert found.rstrip().endswith("## Page 2000")


def test_text_that_is_too_long_is_left_out_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter()
    for _ in range(12):
        writer.append(PdfReader(io.BytesIO(PDF)))
    writer.write(tmp_path / "long.pdf")
    assert document_parser.main("pdf", str(tmp_path / "long.pdf"))["text"].count("Hello from PDF") == 12
    monkeypatch.setattr(document_parser, "TEXT", 200)  # a page has 24
    found = document_parser.main("pdf", str(tmp_path / "long.pdf"))["text"]
    assert found.startswith("[The document has 12 pages. Its first 200 characters, up to page 9, were read;")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("fake.pdf", "'fake.pdf' is no PDF"), ("locked.pdf", "'locked.pdf' is encrypted"), ("fake.docx", "is no Word file"),
     ("bomb.docx", "larger than 200000000 bytes when unpacked"), ("a.exe", "cannot be read"), ("none.pdf", "There are: a.docx")],
)  # fmt: skip
def test_what_it_cannot_read_is_told_by_name(folder: Path, name: str, reason: str) -> None:
    answer = read_document(folder).invoke({"path": name})
    assert answer.startswith("Error: ")
    assert reason in answer


@pytest.mark.parametrize(
    "path", ["../secret.txt", "link.txt", "/etc/passwd", "a.txt/../../secret.txt", "\0", "", "x" * 5000]
)
def test_nothing_outside_the_folder_is_read(folder: Path, path: str) -> None:
    answer = read_document(folder).invoke({"path": path})
    assert answer.startswith("Error: there is no document")
    assert "hidden" not in answer


def test_a_long_text_comes_in_parts(folder: Path) -> None:
    tool = read_document(folder, max_chars=4)
    assert tool.invoke({"path": "a.txt"}) == "0123\n[Characters 0 to 4 of 10; go on with offset=4]"
    assert tool.invoke({"path": "a.txt", "offset": 8}) == "89"
    assert "nothing from character 99" in tool.invoke({"path": "a.txt", "offset": 99})


def test_limits_hold(folder: Path) -> None:
    assert "at most 5" in read_document(folder, max_bytes=5).invoke({"path": "a.pdf"})
    assert "within 0.001 s" in read_document(folder, timeout=0.001).invoke({"path": "a.pdf"})


def test_misuse_raises(folder: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        read_document(folder / "none")
    with pytest.raises(SettingsError):
        read_document(folder, timeout=0)
