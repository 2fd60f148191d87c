"""What all configs are, and what is raised where one cannot be."""

from pydantic import BaseModel, ConfigDict


class LawmError(Exception):
    """Something that the user can put right. Jobs print it as one line and exit with code 2."""


class RunStopped(LawmError):
    """A run that stops by its own figures, which are the same on every rank; others of a population go on."""


class ConfigError(LawmError):
    """A config that cannot be: the message names the field, the value and what was expected."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
