"""Pages: each of the three forms becomes samples whose text is the page's own, or is counted with its reason."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from perception_r1.data.check import check_file
from perception_r1.data.mixture import load_data
from perception_r1.data.pages import REASONS, Pages, page_samples
from perception_r1.data.pdf import pdf_pages
from perception_r1.data.samples import open_image, read_samples, write_samples
from perception_r1.policy import tiny
from perception_r1.records import BadData
from perception_r1.training import grpo

ENGLISH = "The quick (brown) fox\njumps over 13 lazy dogs."
CHINESE = "第一章　总则\n本页只有两行文字，共计三十四个字符。𠀀"


def read(source: Path, **options: Any) -> Pages:
    found = page_samples(source, **options)
    assert found.report["pages"] == len(found.samples) + sum(found.report[reason] for reason in REASONS)
    return found


def left_out(found: Pages) -> dict[str, int]:
    return {reason: found.report[reason] for reason in REASONS if found.report[reason]}


def picture(path: Path, size: tuple[int, int] = (60, 40), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 1 if mode == "1" else None).save(path, **options)
    return path


def assert_checked(found: Pages, file: Path) -> None:
    write_samples(found.samples, file)
    report = check_file(file)
    assert report.problems.problems == []
    assert report.samples == {"ocr": len(found.samples)}
    assert [sample.truth.text for sample in read_samples(file)] == [sample.truth.text for sample in found.samples]


# --- conversations -----------------------------------------------------------------------------------------------------------------


def conversation(image: Any, text: Any, question: Any = "<image>\nOCR:") -> dict[str, Any]:
    """One entry as Fox publishes it."""
    return {"image": image, "len": 7, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": text}]}


def fox(root: Path, *entries: Any) -> Path:
    """A conversation file, with images in `en_pdf_png/` for the entries that name one."""
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("image"), str) and entry["image"] != "none.png":
            picture(root / "en_pdf_png" / entry["image"])
    (root / "en_page_ocr.json").write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    return root / "en_page_ocr.json"


def test_conversations_in_two_languages_arrive_as_published(tmp_path: Path) -> None:
    file = fox(tmp_path, conversation("en_1.png", ENGLISH), conversation("cn/页 1.png", CHINESE, "<image>\nOCR this image: "))
    found = read(file, images=tmp_path / "en_pdf_png")
    assert [(sample.id, sample.truth.text) for sample in found.samples] == [("page-en_1.png", ENGLISH), ("page-cn/页 1.png", CHINESE)]
    for sample in found.samples:
        assert (sample.task, sample.query, sample.width, sample.height, sample.source) == ("ocr", "", 60, 40, "pages")
    assert_checked(found, tmp_path / "out" / "pages.jsonl")
    assert_checked(found, tmp_path / "pages.parquet")


def test_image_paths_start_from_the_file_itself_unless_told(tmp_path: Path) -> None:
    file = fox(tmp_path, conversation("en_pdf_png/a.png", ENGLISH))
    picture(tmp_path / "en_pdf_png" / "a.png")
    assert len(read(file).samples) == 1
    with pytest.raises(BadData, match="found no such folder, expected the one that the image paths of en_page_ocr.json start from"):
        read(file, images=tmp_path / "none")


@pytest.mark.parametrize("question", ["<image>\nOCR:", "OCR: <image>", "<image>\nOCR this image.", "ocr THIS page", "<image>识别图中文字。"])
def test_a_question_for_the_whole_text_is_one_in_any_spelling(question: str, tmp_path: Path) -> None:
    file = fox(tmp_path, conversation("a.png", ENGLISH, question))
    assert len(read(file, images=tmp_path / "en_pdf_png").samples) == 1


OTHER_QUESTIONS = [
    "<image>\nOCR with format:",
    "<image>\nOCR the text inside the box [12, 30, 400, 90]:",
    "<image>\nTranslate the page into Chinese.",
    "<image>",
]


@pytest.mark.parametrize("question", OTHER_QUESTIONS)
def test_a_question_for_something_else_is_no_page_until_it_is_said_to_be(question: str, tmp_path: Path) -> None:
    file = fox(tmp_path, conversation("a.png", ENGLISH), conversation("b.png", "a region", question))
    found = read(file, images=tmp_path / "en_pdf_png")
    assert left_out(found) == {"other_question": 1}
    assert repr(question)[1:-1] in found.problems[0]
    assert len(read(file, images=tmp_path / "en_pdf_png", questions=[question]).samples) == 2


BAD_ENTRIES: dict[str, tuple[Any, str, str]] = {
    "no object": (7, "bad_row", "field image: found None"),
    "no image named": (conversation(None, ENGLISH), "bad_row", "field image: found None"),
    "no such image": (conversation("none.png", ENGLISH), "no_image", "none.png: found no such file"),
    "several images": (conversation(["a.png", "b.png"], ENGLISH), "several_pages", "found 2 images"),
    "no conversation": ({"image": "b.png"}, "bad_row", "field conversations: found None"),
    "no answer": ({"image": "b.png", "conversations": conversation("b.png", "")["conversations"][:1]}, "bad_row", "found turns of ['human']"),
    "several turns": ({"image": "b.png", "conversations": conversation("b.png", "a")["conversations"] * 2}, "bad_row", "expected human and gpt"),
    "turns the other way round": (
        {"image": "b.png", "conversations": conversation("b.png", "a")["conversations"][::-1]},
        "bad_row",
        "found turns of",
    ),
    "an answer that is no text": (conversation("b.png", 12), "bad_row", "field conversations"),
    "an empty page": (conversation("b.png", " \n"), "blank", "found an empty text"),
    "half a character": (conversation("b.png", "a"), "not_utf8", "half a character"),
    "the same page again": (conversation("a.png", "another text"), "bad_row", "'page-a.png' is there twice"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_an_entry_that_cannot_be_used_is_counted_with_its_reason(name: str, tmp_path: Path) -> None:
    entry, reason, words = BAD_ENTRIES[name]
    file = fox(tmp_path, conversation("a.png", ENGLISH), entry)
    if name == "half a character":
        file.write_text(file.read_text().replace('"a"', '"\\ud800"'))
    found = read(file, images=tmp_path / "en_pdf_png")
    assert [sample.truth.text for sample in found.samples] == [ENGLISH]
    assert left_out(found) == {reason: 1}
    assert words in found.problems[0]
    assert "\n" not in found.problems[0]


@pytest.mark.parametrize("content", ["", "{", "{}", "7", "[" * 100_000])
def test_what_is_no_list_of_conversations_is_an_error(content: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(BadData, match="expected a list of conversations"):
        read(file)
    file.write_text("[]")
    with pytest.raises(BadData, match=r"found no page that can be used \(no page at all\)"):
        read(file)


# --- folders -----------------------------------------------------------------------------------------------------------------------


def test_the_four_real_pages_arrive_with_their_texts(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = data_folder("ocr_tesseract")
    found = read(folder)
    assert left_out(found) == {}
    names = ["8071_093.3B", "8087_054.3B", "eurotext", "phototest"]
    assert [sample.id for sample in found.samples] == [f"page-{name}" for name in names]
    for name, sample in zip(names, found.samples, strict=True):
        assert str(sample.truth.text).encode() == (folder / f"{name}.txt").read_bytes().replace(b"\r\n", b"\n")
        with Image.open(folder / f"{name}.tif") as image:
            assert (sample.width, sample.height) == image.size
    assert_checked(found, tmp_path / "pages.jsonl")


def test_a_text_is_the_one_of_its_images_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.3B.tif", "深/页 1.jpeg", "c.JPG"):
        picture(tmp_path / "pages" / name)
    texts = {"a.gt.txt": "gt", "b.3B.gold.txt": "gold", "深/页 1.txt": CHINESE, "c.txt": "plain"}
    for name, text in texts.items():
        (tmp_path / "pages" / name).write_text(text, encoding="utf-8")
    found = read(tmp_path / "pages")
    assert {sample.id: sample.truth.text for sample in found.samples} == {
        "page-a": "gt",
        "page-b.3B": "gold",
        "page-c": "plain",
        "page-深/页 1": CHINESE,
    }
    assert_checked(found, tmp_path / "pages.jsonl")


def test_texts_that_say_the_same_are_one_and_texts_that_differ_need_a_choice(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    for name, text in {"a.txt": "same", "a.gold.txt": "same", "b.txt": "recognised", "b.gold.txt": "true"}.items():
        (tmp_path / name).write_text(text)
    found = read(tmp_path)
    assert [sample.truth.text for sample in found.samples] == ["same"]
    assert left_out(found) == {"texts_differ": 1}
    assert "b.gold.txt and b.txt with different words" in found.problems[0]
    assert [sample.truth.text for sample in read(tmp_path, texts=".gold.txt").samples] == ["same", "true"]


@pytest.mark.parametrize("raw", ["one\r\ntwo\r\n", "one\rtwo\r", "\ufeffone\ntwo\n"])
def test_line_ends_are_one_kind_and_a_byte_order_mark_is_no_text(raw: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(raw.encode())
    assert read(tmp_path).samples[0].truth.text == "one\ntwo\n"


def bad_page(folder: Path, fault: str) -> None:
    picture(folder / "bad.png", exif=Image.Exif())
    (folder / "bad.txt").write_text("words")
    if fault == "no_text":
        (folder / "bad.txt").unlink()
    elif fault == "no_image":
        (folder / "bad.png").unlink()
    elif fault == "blank":
        (folder / "bad.txt").write_text("\n \u3000\n")
    elif fault == "not_utf8":
        (folder / "bad.txt").write_bytes(CHINESE[:4].encode("gb18030"))
    elif fault == "same_stem":
        picture(folder / "bad.tif")
    elif fault == "unreadable":
        content = (folder / "bad.png").read_bytes()
        (folder / "bad.png").write_bytes(content[: len(content) // 2])
    elif fault == "several_pages":
        (folder / "bad.png").unlink()
        picture(folder / "bad.tif", save_all=True, append_images=[Image.new("RGB", (60, 40))])


FAULTS = ["no_text", "no_image", "blank", "not_utf8", "same_stem", "unreadable", "several_pages"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_page_that_cannot_be_used_is_counted_with_its_reason(fault: str, tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "good.txt").write_text(ENGLISH)
    bad_page(tmp_path, fault)
    found = read(tmp_path)
    assert [sample.id for sample in found.samples] == ["page-good"]
    assert left_out(found) == {fault: 1}
    assert "bad" in found.problems[0]


def test_pages_of_odd_kinds_keep_their_stored_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = {"bits.tif": {"mode": "1"}, "deep.png": {"mode": "I;16"}, "cmyk.jpg": {"mode": "CMYK"}, "turned.jpg": {"exif": exif}}
    for name, options in (pages | {"wide.png": {"size": (20_000, 300)}}).items():
        path = picture(tmp_path / "pages" / name, **options)
        path.with_suffix(".txt").write_text("words", encoding="utf-8")
    found = read(tmp_path / "pages")
    assert found.report["exif_rotated"] == 1
    sizes = {sample.id: (sample.width, sample.height) for sample in found.samples}
    assert sizes == {f"page-{Path(name).stem}": (60, 40) for name in pages} | {"page-wide": (20_000, 300)}
    assert_checked(found, tmp_path / "pages.jsonl")


def test_the_form_is_declared_where_a_folder_does_not_say_it(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="found no such file or folder"):
        read(tmp_path / "none")
    (tmp_path / "a.csv").touch()
    with pytest.raises(BadData, match=r"found a file named \*\.csv, expected \.json, \.pdf or a folder"):
        read(tmp_path / "a.csv")
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.pdf").write_bytes(pdf(text_page(ENGLISH)))
    with pytest.raises(BadData, match="choose with form=folder or form=pdf"):
        read(tmp_path)
    assert [sample.id for sample in read(tmp_path, form="folder").samples] == ["page-a"]
    assert [sample.id for sample in read(tmp_path, form="pdf", rendered=tmp_path / "r").samples] == ["page-b-0001"]
    with pytest.raises(BadData, match="name it with rendered=FOLDER"):
        read(tmp_path, form="pdf")
    with pytest.raises(BadData, match="found form 'xml', expected one of conversation, folder, pdf"):
        read(tmp_path, form="xml")


# --- PDFs --------------------------------------------------------------------------------------------------------------------------

HELVETICA = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"


def stream(content: bytes, words: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), words, content)


def drawn_font(letters: str) -> list[bytes]:
    """A Type 3 font in the file, whose k-th letter is a drawn frame, with a Unicode map: objects font, map, letter."""
    codes = "".join(f"<{k:02x}> <{letter.encode('utf-16-be').hex()}>\n" for k, letter in enumerate(letters, 1))
    cmap = "/CIDInit /ProcSet findresource begin 12 dict begin begincmap 1 begincodespacerange <00> <ff> endcodespacerange "
    cmap += f"{len(letters)} beginbfchar\n{codes}endbfchar endcmap end end"
    names = b" ".join(b"/g%d" % k for k in range(1, len(letters) + 1))
    font = b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 1000 1000] /FontMatrix [.001 0 0 .001 0 0] /FirstChar 1 /LastChar %d /Widths [%s]" % (
        len(letters),
        b"1000 " * len(letters),
    )
    font += b" /Encoding << /Type /Encoding /Differences [1 %s] >> /CharProcs << %s >> /ToUnicode 21 0 R >>" % (
        names,
        b" ".join(b"/g%d 22 0 R" % k for k in range(1, len(letters) + 1)),
    )
    return [font, stream(cmap.encode()), stream(b"1000 0 100 0 900 800 d1 100 0 800 800 re 300 200 400 400 re f*")]


def pdf(*contents: bytes, font: list[bytes] | None = None, box: str = "0 0 400 200", page: bytes = b"", root: bytes = b"") -> bytes:
    """A PDF, object by object: a page for each content, with the font /F."""
    kids = b" ".join(b"%d 0 R" % (30 + 2 * k) for k in range(len(contents)))
    objects = {1: b"<< /Type /Catalog /Pages 2 0 R %s >>" % root, 2: b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(contents))}
    objects |= dict(enumerate(font or [HELVETICA], 20))
    for k, content in enumerate(contents):
        words = b"/MediaBox [%s] /Contents %d 0 R /Resources << /Font << /F 20 0 R >> >> %s" % (box.encode(), 31 + 2 * k, page)
        objects |= {30 + 2 * k: b"<< /Type /Page /Parent 2 0 R %s >>" % words, 31 + 2 * k: stream(content)}
    out, places = io.BytesIO(b""), {}
    out.write(b"%PDF-1.7\n")
    for number, content in objects.items():
        places[number] = out.tell()
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    start = out.tell()
    out.write(b"xref\n")
    for number, place in sorted(places.items()):
        out.write(b"%d 1\n%010d 00000 n \n" % (number, place))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (max(places) + 1, start))
    return out.getvalue()


def text_page(text: str, start: bytes = b"") -> bytes:
    lines = [line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)").encode("cp1252") for line in text.split("\n")]
    return start + b"BT /F 18 Tf 22 TL 20 170 Td " + b" T* ".join(b"(%s) Tj" % line for line in lines) + b" ET"


def chinese_page(text: str) -> tuple[bytes, list[bytes]]:
    letters = "".join(dict.fromkeys(text.replace("\n", "")))
    lines = [b"<%s> Tj" % bytes(letters.index(letter) + 1 for letter in line).hex().encode() for line in text.split("\n")]
    return b"BT /F 12 Tf 22 TL 20 170 Td " + b" T* ".join(lines) + b" ET", drawn_font(letters)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_pages_of_a_pdf_are_rendered_with_their_own_text(tmp_path: Path) -> None:
    file = written(tmp_path / "a.pdf", pdf(text_page(ENGLISH), text_page("Größe: 7 €\nnaïve")))
    found = read(file, rendered=tmp_path / "images", dpi=144)
    assert [(sample.id, sample.truth.text) for sample in found.samples] == [("page-a-0001", ENGLISH), ("page-a-0002", "Größe: 7 €\nnaïve")]
    assert [(sample.width, sample.height) for sample in found.samples] == [(800, 400)] * 2
    assert_checked(found, tmp_path / "pages.jsonl")


def test_a_chinese_pdf_gives_its_characters(tmp_path: Path) -> None:
    text = CHINESE.replace("　", "")
    content, font = chinese_page(text)
    found = read(written(tmp_path / "深" / "一.pdf", pdf(content, font=font)), rendered=tmp_path / "图")
    assert [sample.truth.text for sample in found.samples] == [text]
    assert_checked(found, tmp_path / "pages.jsonl")


def ink_rows(image: Image.Image) -> tuple[int, int]:
    rows = np.flatnonzero((np.asarray(image.convert("L")) < 128).any(axis=1))
    return int(rows[0]), int(rows[-1])


def test_the_picture_shows_the_text_where_the_file_puts_it(tmp_path: Path) -> None:
    file = written(tmp_path / "a.pdf", pdf(b"BT /F 18 Tf 20 100 Td (HHH) Tj ET"))
    sample = read(file, rendered=tmp_path / "r", dpi=72).samples[0]
    top, bottom = ink_rows(open_image(sample))
    assert 200 - 100 - 14 <= top <= 200 - 100 - 11  # capitals of Helvetica are 0.72 of the size high
    assert abs(bottom - 99) <= 1


@pytest.mark.parametrize("dpi, size", [(72, (400, 200)), (100, (556, 278)), (300, (1667, 834)), (36, (200, 100))])
def test_pages_have_the_resolution_asked_for(dpi: int, size: tuple[int, int], tmp_path: Path) -> None:
    sample = read(written(tmp_path / "a.pdf", pdf(text_page(ENGLISH))), rendered=tmp_path / "r", dpi=dpi).samples[0]
    assert abs(sample.width - size[0]) <= 1
    assert abs(sample.height - size[1]) <= 1


def test_a_poster_is_rendered_at_a_lower_resolution_and_its_text_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perception_r1.data.pdf.MOST_PIXELS", 500_000)
    file = written(tmp_path / "a.pdf", pdf(text_page(ENGLISH, b"30 0 0 30 0 0 cm "), box="0 0 12000 6000"))
    sample = read(file, rendered=tmp_path / "r", dpi=600).samples[0]
    assert 0.99 * 500_000 < sample.width * sample.height < 1.01 * 500_000
    assert sample.width == pytest.approx(2 * sample.height, abs=2)
    assert sample.truth.text == ENGLISH


def test_a_rotated_page_is_rendered_upright_with_its_text(tmp_path: Path) -> None:
    sideways = text_page(ENGLISH, b"0 .5 -.5 0 100 0 cm ")
    sample = read(written(tmp_path / "a.pdf", pdf(sideways, page=b"/Rotate 90")), rendered=tmp_path / "r", dpi=144).samples[0]
    assert (sample.width, sample.height) == (400, 800)
    assert sample.truth.text == ENGLISH
    ink = np.asarray(open_image(sample).convert("L")) < 128
    assert np.ptp(np.flatnonzero(ink.any(axis=0))) > 3 * np.ptp(np.flatnonzero(ink.any(axis=1)))  # two lines, wide and low


def test_text_outside_the_visible_part_is_no_truth(tmp_path: Path) -> None:
    file = written(tmp_path / "a.pdf", pdf(text_page("seen") + b" BT /F 18 Tf 20 20 Td (unseen) Tj ET", page=b"/CropBox [0 100 400 200]"))
    sample = read(file, rendered=tmp_path / "r", dpi=72).samples[0]
    assert sample.truth.text == "seen"
    assert (sample.width, sample.height) == (400, 100)


def test_a_hyphen_at_the_end_of_a_line_stays_one_as_printed(tmp_path: Path) -> None:
    text = "a well-known hyphen-\nated word"
    sample = read(written(tmp_path / "a.pdf", pdf(text_page(text))), rendered=tmp_path / "r").samples[0]
    assert sample.truth.text == text


def unembedded() -> list[bytes]:
    """Chinese by a font that is not in the file; no machine has one of this name."""
    child = b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Nowhere /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >>"
    child += b" /FontDescriptor << /Type /FontDescriptor /FontName /Nowhere /Flags 4 /FontBBox [0 0 1000 1000] >> >>"
    cmap = b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap 1 begincodespacerange <0000> <ffff> endcodespacerange"
    cmap += b" 1 beginbfrange <e000> <e0ff> <4e00> endbfrange endcmap end end"
    font = b"<< /Type /Font /Subtype /Type0 /BaseFont /Nowhere /Encoding /Identity-H /DescendantFonts [%s] /ToUnicode 21 0 R >>" % child
    return [font, stream(cmap)]


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "no text layer": (pdf(b"20 20 100 100 re f"), "blank", "found no text layer"),
    "hidden text": (pdf(b"3 Tr " + text_page(ENGLISH)), "not_drawn", "100% of the text layer's characters"),
    "white on white": (pdf(b"1 g " + text_page(ENGLISH)), "not_drawn", "100% of the text layer's characters"),
    "a font that nobody has": (
        pdf(b"BT /F 24 Tf 20 100 Td <e000e001e002e003e004e005> Tj ET", font=unembedded()),
        "not_drawn",
        "install the font, or leave it out",
    ),
    "private characters": (pdf(chinese_page("\ue000\ue001")[0], font=chinese_page("\ue000\ue001")[1]), "unmapped", r"as '\ue000'"),
    "no PDF": (b"words", "unreadable", "found no readable PDF"),
    "an empty file": (b"", "unreadable", "found no readable PDF"),
    "cut in the middle": (pdf(text_page(ENGLISH))[:60], "unreadable", "found no readable PDF"),
}


@pytest.mark.parametrize("content, reason, words", REFUSED.values(), ids=REFUSED)
def test_a_page_whose_text_is_not_what_it_shows_is_counted_with_its_reason(content: bytes, reason: str, words: str, tmp_path: Path) -> None:
    written(tmp_path / "pdfs" / "good.pdf", pdf(text_page(ENGLISH)))
    written(tmp_path / "pdfs" / "sub" / "bad.pdf", content)
    found = read(tmp_path / "pdfs", rendered=tmp_path / "r")
    assert [sample.id for sample in found.samples] == ["page-good-0001"]
    assert left_out(found) == {reason: 1}
    assert words in found.problems[0]
    assert "bad.pdf" in found.problems[0]


def test_hidden_text_over_a_scan_that_shows_the_words_is_a_truth(tmp_path: Path) -> None:
    words = text_page(ENGLISH)
    found = read(written(tmp_path / "a.pdf", pdf(words + b" 3 Tr " + words)), rendered=tmp_path / "r")
    assert len(found.samples) == 1


def test_full_stops_and_lines_that_fill_their_box_are_seen(tmp_path: Path) -> None:
    found = read(written(tmp_path / "a.pdf", pdf(text_page("... | | --- ___ . . .\n||| ... ---"))), rendered=tmp_path / "r", dpi=300)
    assert left_out(found) == {}


def test_a_folder_of_pdfs_keeps_its_folders_and_names_two_of_one_name(tmp_path: Path) -> None:
    for name in ("a.pdf", "b/a.pdf", "b/a.PDF"):
        written(tmp_path / "pdfs" / name, pdf(text_page(name.replace("/", " "))))
    found = read(tmp_path / "pdfs", rendered=tmp_path / "r")
    assert [sample.id for sample in found.samples] == ["page-a-0001", "page-b/a-0001"]
    assert left_out(found) == {"same_stem": 1}
    assert sorted(path.relative_to(tmp_path / "r").as_posix() for path in (tmp_path / "r").rglob("*.png")) == ["a-0001.png", "b/a-0001.png"]


def test_pages_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    file = written(tmp_path / "a.pdf", pdf(b"", text_page("two"), b"", text_page("four")))
    numbers = [page.number if not isinstance(page, BadData) else page.reason for page in pdf_pages(file, 36)]
    assert numbers == ["blank", 2, "blank", 4]
    assert [sample.id for sample in read(file, rendered=tmp_path / "r").samples] == ["page-a-0002", "page-a-0004"]
    with pytest.raises(BadData, match="found dpi 0, expected at least 1"):
        list(pdf_pages(file, 0))


def test_without_pypdfium2_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "a.pdf", pdf(text_page(ENGLISH)))
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(BadData, match=r"pypdfium2, which reads PDFs, is not installed: pip install -e '\.\[data\]' -c constraints\.txt"):
        read(file, rendered=tmp_path / "r")


def test_a_scan_saved_as_pdf_has_no_truth(tmp_path: Path) -> None:
    image = Image.new("RGB", (600, 200), "white")
    ImageDraw.Draw(image).text((10, 60), "words", fill="black", font=ImageFont.load_default(size=60))
    image.save(tmp_path / "scan.pdf")
    with pytest.raises(BadData, match=r"found no page that can be used \(pages 1, blank 1\).*a scan has none"):
        read(tmp_path / "scan.pdf", rendered=tmp_path / "r")


# --- training ----------------------------------------------------------------------------------------------------------------------


def test_training_takes_a_step_on_the_real_pages(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(data_folder("ocr_tesseract"), tmp_path / "pages")
    write_samples(read(tmp_path / "pages").samples, tmp_path / "pages.jsonl")
    tiny.save_untrained(tmp_path / "tiny")
    small = ["--task", "ocr", "--model", str(tmp_path / "tiny"), "--data", str(tmp_path / "pages.jsonl"), "--eval_data", "", "--use_cpu", "true"]
    small += ["--max_steps", "1", "--save_steps", "1", "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_pixels", "20000"]
    output = grpo.run("ocr", [*small, "--max_completion_length", "16", "--gradient_accumulation_steps", "1", "--output_dir", str(tmp_path / "run")])
    assert (output / "model.safetensors").is_file()


def test_a_set_of_pages_has_its_own_name_and_can_be_mixed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (60, 40)).save(tmp_path / name / "1.png")
        (tmp_path / name / "1.txt").write_text("text")
    mixed = load_data(f"pages:{tmp_path / 'a'}?name=mine,pages:{tmp_path / 'b'}")
    assert [(s.id, s.source) for s in mixed] == [("mine-1", "mine"), ("page-1", "pages")]
