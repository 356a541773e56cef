"""Files of published weights: looked for here first, fetched only then; tensors are read without running code."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from maskgen.core.errors import UserError
from maskgen.core.files import atomic, local_path

VARIABLE = "MASKGEN_WEIGHTS"
TIMEOUT = 5.0
"""Seconds to wait for a server that does not answer."""


class WeightsError(UserError):
    """Weights that are not here or damaged; the message names the file and where it comes from."""


@dataclass(frozen=True)
class WeightsFile:
    """A published file: the names it goes by, where it is from, its SHA-256 (or how that begins)."""

    names: tuple[str, ...]
    url: str
    sha256: str

    def find(self, given: str | None = None) -> Path:
        """The file: `given`, else in `$MASKGEN_WEIGHTS`, else in torch.hub's folder, else fetched into that folder.

        `given` and the variable may name the file itself or a folder that holds it under one of its names.

        Raises:
            WeightsError: `given` or what the variable names is not there or of another kind, or the file is nowhere
                and cannot be fetched.
        """
        if given is not None:
            path = self._in(local_path(given))
            if path is None:
                raise WeightsError(f"--weights {given}: no such file, and no folder with {' or '.join(self.names)}")
            return path
        return self._of_variable() or self._in(self._hub()) or self._fetch()

    def _of_variable(self) -> Path | None:
        """The file in `$MASKGEN_WEIGHTS`; None if it names nothing, or folders that lack it."""
        places = [local_path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
        for place in places:
            if not place.exists():
                raise WeightsError(f"${VARIABLE} names {place}, which is not there")
        found = [path for place in places if (path := self._in(place, may_be_file=self._is_named(place)))]
        if wrong := [place for place in places if place.is_file() and not found]:
            ending = Path(self.names[0]).suffix
            raise WeightsError(
                f"${VARIABLE} names {wrong[0]}; needs {self.names[0]}, ending in {ending}. Add that file "
                f"to the variable, after a {os.pathsep!r}, or give --weights FILE"
            )
        return found[0] if found else None

    def is_published(self, sha256: str) -> bool:
        """Whether these are the published weights."""
        return sha256.startswith(self.sha256)

    def _is_named(self, place: Path) -> bool:
        return place.suffix == Path(self.names[0]).suffix

    def _in(self, place: Path, may_be_file: bool = True) -> Path | None:
        if place.is_file():
            return place if may_be_file else None
        return next((place / name for name in self.names if (place / name).is_file()), None)

    def _hub(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints"

    def _fetch(self) -> Path:
        target = self._hub() / self.names[0]
        try:
            if os.environ.get("HF_HUB_OFFLINE"):
                raise OSError("HF_HUB_OFFLINE is set")
            with urllib.request.urlopen(self.url, timeout=TIMEOUT) as response, atomic(target) as file:
                shutil.copyfileobj(response, file)
                file.flush()
                if not self.is_published(found := sha256_of(Path(file.name))):
                    raise OSError(f"what came has SHA-256 {found}")
        except OSError as error:
            raise WeightsError(
                f"the weights {self.names[0]} are not here and could not be fetched ({error}). Get them from "
                f"{self.url} (SHA-256 {self.sha256}...) and give --weights FILE, set {VARIABLE} or put them into "
                f"{self._hub()}"
            ) from None
        return target


INCEPTION = WeightsFile(
    ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
)
"""The 2015 Inception of every FID as tensors (Apache-2.0); both names are of one file."""

INCEPTION_SCRIPT = WeightsFile(
    ("inception-2015-12-05.pt",),
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
"""The same as TorchScript, as clean-fid uses it (NVIDIA's licence: not for commercial use)."""


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a `.pth` or `.safetensors` file; code in it is not run.

    Raises:
        WeightsError: damaged, or not a dict of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors errors of many kinds
        first = str(error).strip().split("\n")[0]
        raise WeightsError(f"{path} is damaged or holds more than tensors: {first}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} is not a state dict of tensors")
    return state
