"""Settings that travel together: a frozen dataclass that is picked out of a notebook's values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of a frozen dataclass whose fields are named like parameters of a notebook."""

    @classmethod
    def of(cls, parameters: Mapping[str, Any], **changed: Any) -> Self:
        """Pick a notebook's `globals()` or a manifest's parameters for the fields.

        Args:
            parameters: values by name; other names are ignored.
            changed: fields that have another value, or another name among the parameters.

        Returns:
            The settings, checked.

        Raises:
            ValueError: where a field without a default is missing, or a value is out of its range.
            TypeError: where `changed` names something that is no field.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := changed.keys() - fields.keys():
            raise TypeError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
        given = {name: value for name, value in {**parameters, **changed}.items() if name in fields}
        required = [n for n, field in fields.items() if field.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in given]:
            raise ValueError(f"{cls.__name__} is missing {', '.join(missing)}")
        return cls(**given)

    def check(self, name: str, is_right: bool, expected: str) -> None:
        """Check one field.

        Args:
            name: of the field.
            is_right: whether its value is as expected.
            expected: how a right value is described in the message.

        Raises:
            ValueError: where it is not right; the message names the field and its value.
        """
        if not is_right:
            raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")
