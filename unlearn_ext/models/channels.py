"""The images that models of any family may take."""

from ..errors import UserError


def check_channels(channels: int) -> None:
    """Raises ``UserError`` where images have neither one channel nor three."""
    if channels not in (1, 3):
        raise UserError(f"the model takes images of {channels} channels; only 1 (grey) and 3 (RGB) are known.")
