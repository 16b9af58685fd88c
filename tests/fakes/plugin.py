"""A kubelet credential provider plugin: a small program that says what a test wants, and notes what it was asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class FakePlugin:
    """Lives in `folder`; `command` is to be run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.command = folder / "plugin"
        self.command.write_text(
            f"#!/bin/sh\ncd {folder}\n{{ cat; echo; }} >> asked\n"
            'echo "$*${REGION:+ REGION=$REGION}" > arguments\ncat answer\necho geheim >&2\nexit $(cat code)\n'
        )
        self.command.chmod(0o755)

    def answers(self, auth: Any, kind: str = "Registry", duration: str | None = "5m") -> None:
        """Say this from now on, as kubelet wants it."""
        answer: Mapping[str, Any] = {
            "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": kind, "cacheDuration": duration, "auth": auth,
        }  # fmt: skip
        self.says(json.dumps(answer))

    def says(self, output: str, exit_code: int = 0) -> None:
        """Say this from now on."""
        (self._folder / "answer").write_text(output)
        (self._folder / "code").write_text(str(exit_code))

    @property
    def asked(self) -> list[dict[str, str]]:
        """Every request."""
        file = self._folder / "asked"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def images(self) -> list[str]:
        """The image of every request."""
        return [request["image"] for request in self.asked]

    @property
    def arguments(self) -> str:
        """What it was started with last."""
        return (self._folder / "arguments").read_text().strip()
