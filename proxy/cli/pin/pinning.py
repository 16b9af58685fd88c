"""Files and their images, from reading to writing.

First every file is read, and one that cannot be ends it all; then every digest is asked for; then files are written. A
template, or what else is no reference, is reported, and holds nothing up. A file with an image whose digest could not
be had stays as it is, so that it is never half of one day and half of another.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.cli.pin.digests import Unknown, Ways, find_digests
from proxy.cli.pin.documents import Unreadable
from proxy.cli.pin.files import File, FileProblem, find, read, write
from proxy.cli.pin.images import Image, images_in
from proxy.cli.pin.rewrite import difference, rewritten
from proxy.oci.digest import Digest
from proxy.oci.image import ImageName

_LONGEST = 200

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Work:
    """A file and what is to be done in it."""

    file: File
    images: list[Image]

    def at(self, image: Image, words: str) -> str:
        """A line about an image, with its place as compilers write it."""
        written = image.written if image.written.isprintable() else ascii(image.written)
        return f"{self.file.name}:{image.line}: {written[:_LONGEST]} {words}"


def read_all(paths: Collection[Path], say: Say) -> list[Work] | None:
    """All files and their images; None where there is any mistake, each of which was said."""
    try:
        found = list(find(paths))
    except FileProblem as error:
        say(str(error))
        return None
    read_well = [_read(path, say) for path in found]
    works = [work for work in read_well if work is not None]
    for work in works:
        # Not of those that are in a directory beside others.
        if not work.images and (work.file.path is None or work.file.path in paths):
            say(f"{work.file.name}: no images found")
    return works if len(works) == len(found) else None


def _read(path: Path, say: Say) -> Work | None:
    try:
        file = read(path)
    except FileProblem as error:
        say(str(error))
        return None
    try:
        return Work(file, images_in(file.text))
    except Unreadable as error:
        line = file.text.split("\n")[error.line - 1]
        hint = "; a template? Pin what it renders to" if "{{" in line or "{%" in line else ""
        say(f"{file.name}:{error.line}: {error}{hint}")
        return None


def unpinned(works: Iterable[Work]) -> list[str]:
    """A line for each image without a digest."""
    lines = []
    for work in works:
        for image in work.images:
            if image.problem:
                lines.append(work.at(image, f"cannot be pinned: {image.problem}"))
            elif not image.pinned:
                lines.append(work.at(image, "is not pinned"))
    return lines


def pin_all(works: Iterable[Work], ways: Ways, show: Say | None, say: Say) -> bool:
    """Ask for all digests and write the files, or `show` their differences; was everything pinned?"""
    works = list(works)
    names = dict.fromkeys(image.wanted for work in works for image in work.images if image.wanted is not None)
    found = asyncio.run(find_digests(names, ways, lambda text: say(f"warning: {text}"))) if names else {}
    done = [_pin(work, found, show, say) for work in works]
    return all(done)


def _pin(work: Work, found: Mapping[ImageName, Digest | Unknown], show: Say | None, say: Say) -> bool:
    problems = {image: image.problem for image in work.images if image.problem}
    answers = {image: found[image.wanted] for image in work.images if image.wanted is not None}
    failed = {image: str(answer) for image, answer in answers.items() if isinstance(answer, Unknown)}
    for image, problem in sorted((problems | failed).items(), key=lambda one: one[0].line):
        say(work.at(image, f"cannot be pinned: {problem}"))
    if failed:
        say(f"{work.file.name}: left as it is")
        return False
    digests = {name: digest for name, digest in found.items() if isinstance(digest, Digest)}
    text = rewritten(work.file.text, work.images, digests)
    if show is not None:
        show(difference(work.file.name, work.file.text, text))
        return not problems
    if answers or work.file.path is None:
        return _write(work, text, len(answers), say) and not problems
    return not problems


def _write(work: Work, text: str, count: int, say: Say) -> bool:
    try:
        write(work.file, text)
    except FileProblem as error:
        say(str(error))
        return False
    say(f"{work.file.name}: {count} image{'s' if count != 1 else ''} pinned")
    return True
