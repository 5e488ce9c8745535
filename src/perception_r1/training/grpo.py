"""GRPO."""
import transformers
from ..dialects import Dialect, dialect_named, dialect_of_model


def dialect_for(model: str, named: str | None) -> Dialect:
    """The dialect named, else the one that the model's family writes."""
    if named:
        return dialect_named(named)
    return dialect_of_model(transformers.AutoConfig.from_pretrained(model).model_type)
