"""How many states an encoder makes of a clip, by its config alone."""

from lawm.config import ClipSpec, EncoderConfig, LawmError, VJepa2Encoder

TUBELET = 2
"""Frames that V-JEPA 2 makes one state of."""


def looks_back(config: EncoderConfig) -> bool:
    """Whether a state depends on earlier frames of its clip, and so on where the clip starts."""
    return isinstance(config, VJepa2Encoder) and config.causality != "duplicate"


def past_counts(config: EncoderConfig) -> bool:
    """Whether a state depends on frames before its own, so that more of them make it another one."""
    return isinstance(config, VJepa2Encoder) and config.causality == "block_causal"


def check_state_a_frame(config: EncoderConfig, clip: ClipSpec) -> None:
    """Raises LawmError where one real action would not be one transition between states (spec section 1)."""
    if looks_back(config) and clip.duplicate == 1:
        raise LawmError(
            f"the encoder makes one state of {TUBELET} frames, and actions are given frame by frame: set "
            f"data.clip.duplicate=2 (each frame twice) and data.clip.frames={states_per_clip(config, clip)} (as many "
            "states as before), or train with encoder.causality=duplicate"
        )


def states_per_clip(config: EncoderConfig, clip: ClipSpec) -> int:
    """States that the encoder makes of a clip: one a frame, or one a tubelet of two (repeated) frames."""
    return clip.frames // TUBELET if looks_back(config) and clip.duplicate == 1 else clip.frames
