"""The libraries that Melete needs, and those of its optional extras: what is there, is missing, or does not fit."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from melete.doctor.lines import Line

USED_BY = {
    "math": "the reward `math`",
    "judge": "judges behind an endpoint",
    "envs": "the tasks of reasoning-gym",
    "data": "Parquet files and `datasets` directories",
    "lora": "low-rank adapters",
    "serve": "melete serve, watch and label",
    "tensorboard": "--track tensorboard",
    "wandb": "--track wandb",
    "trackio": "--track trackio",
    "vllm": "the sampler `vllm`",
    "gguf": "melete models get smollm2-135m",
    "wasm": "the sandbox `wasm`",
    "test": "the tests",
    "dev": "working on Melete itself",
}
_PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def requirements(project: Path = _PROJECT) -> dict[str, list[Requirement]]:
    """Extra -> what it asks for; under "" what is always needed.

    A source tree says it itself: what was noted when it was installed may be older. Raises `PackageNotFoundError` where
    there is neither that nor an installed package.
    """
    if (
        project.is_file()
        and (tables := tomllib.loads(project.read_text(encoding="utf-8"))["project"])["name"] == "melete"
    ):
        named = {"": tables["dependencies"], **tables["optional-dependencies"]}
        return {
            extra: [found for text in texts if (found := Requirement(text)).name != "melete"]
            for extra, texts in named.items()
        }
    all_of_them = [Requirement(text) for text in metadata.requires("melete") or ()]
    extras = metadata.metadata("melete").get_all("Provides-Extra") or []
    always = [one for one in all_of_them if one.marker is None or one.marker.evaluate({"extra": ""})]
    own = {
        extra: [
            one for one in all_of_them if one not in always and one.marker and one.marker.evaluate({"extra": extra})
        ]
        for extra in extras
    }
    return {"": always, **own}


def installed(name: str) -> str | None:
    """The version of a distribution, if it is there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look_at_libraries(needed: Mapping[str, Sequence[Requirement]] | None = None) -> Iterator[Line]:
    """The libraries without which nothing works, then a line for each extra."""
    needed = requirements() if needed is None else needed
    for one in needed.get("", ()):
        version, amiss = installed(one.name), _amiss(one)
        if amiss:
            yield Line(one.name, amiss, "problem", "pip install melete", {"version": version})
        elif one.name in ("torch", "transformers"):
            yield Line(one.name, str(version), facts={"version": version})
    for extra, asked in needed.items():
        if extra:
            yield _extra(extra, asked)


def _extra(extra: str, asked: Sequence[Requirement]) -> Line:
    versions = {one.name: installed(one.name) for one in asked}
    used_by = f"for {USED_BY[extra]}" if extra in USED_BY else ""
    amiss = [told for one in asked if (told := _amiss(one))]
    if amiss:
        says = f"{extra}, {used_by}: {', '.join(amiss)}"
        return Line("extra", says, "note", f"pip install 'melete[{extra}]'", {"extra": extra, "versions": versions})
    there = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Line("extra", f"{extra}, {used_by}: {there}", facts={"extra": extra, "versions": versions})


def _amiss(one: Requirement) -> str:
    version = installed(one.name)
    if version is None:
        return f"{one.name} is missing"
    if not one.specifier.contains(version, prereleases=True):
        return f"{one.name} {version} is there, {one.specifier} is needed"
    return ""
