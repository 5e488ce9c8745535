"""Pictures as large as the model sees them: what is larger would only be carried around."""

from typing import Any

from PIL import Image
from torchvision.transforms.v2 import functional as vision
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

from ..evaluation.checkpoint import frame_by_processor


class Shrink:
    """Makes a picture as small as a processor shows it to the model, where that is smaller.

    A picture of 12 million pixels otherwise travels whole through TRL's copies, and between
    processes. It is resized by the processor's own code, so the processor finds nothing left to do,
    and makes the same pixels of both.
    """

    def __init__(self, processor: Any) -> None:
        self.image_processor = processor.image_processor

    def __call__(self, picture: Image.Image) -> Image.Image:
        """A picture in RGB at the size that the model sees, or itself where that is not smaller."""
        size = self._seen(picture.size)
        if size[0] * size[1] >= picture.width * picture.height:
            return picture
        if self._seen(size) != size:  # limits so narrow that resizing twice is not resizing once
            return picture
        if not isinstance(self.image_processor, TorchvisionBackend):
            return picture.resize(size, self.image_processor.resample)
        return self._resized(picture, size)

    def _seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that the processor makes of `size`; `size` where it is no Qwen's."""
        if not getattr(self.image_processor, "do_resize", False):
            return size
        frame = frame_by_processor(self, *size)
        return frame.seen_width, frame.seen_height

    def _resized(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        pixels = vision.pil_to_tensor(picture)[None]
        target = SizeDict(height=size[1], width=size[0])
        images = self.image_processor
        resized = TorchvisionBackend.resize(images, pixels, target, images.resample)
        return vision.to_pil_image(resized[0])
