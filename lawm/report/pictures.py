"""Images as PNG bytes: single ones for the page, a grid for a README or a talk."""

import io

import numpy as np

from lawm.report.sections import Pictures


def image_png(image: np.ndarray) -> bytes:
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"a picture is {image.dtype} {image.shape}; expected uint8 [H, W, 3] or [H, W]")
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def grid_png(pictures: Pictures, rows: int, side: int = 96) -> bytes:
    """The first rows of a picture section as one PNG with their labels, for a README or a talk."""
    from PIL import Image, ImageDraw

    shown = pictures.rows[:rows]
    left, top, columns = 210, 18 if pictures.column_labels else 0, max((len(row) for row in shown), default=0)
    sheet = Image.new("RGB", (left + columns * (side + 4), top + len(shown) * (side + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, label in enumerate(pictures.column_labels[:columns]):
        draw.text((left + x * (side + 4), 3), label, fill="black")
    for y, (row, label) in enumerate(zip(shown, pictures.row_labels, strict=False)):
        draw.text((6, top + y * (side + 4) + side // 2 - 6), label, fill="black")
        for x, image in enumerate(row):
            if image is not None:
                place = left + x * (side + 4), top + y * (side + 4)
                sheet.paste(Image.fromarray(image).resize((side, side)), place)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()
