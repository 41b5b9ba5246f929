"""What docker/ and docs/deploy.md promise, read from the files: no docker is needed or run."""

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from packaging.requirements import Requirement

from sfn_rt.options import BackendName

DOCKERFILES = ["Dockerfile", "Dockerfile.jetson"]
SECRET = re.compile(r"(?i)(password|passwd|token|secret|api_?key|private_?key)")


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile, continuations joined."""

    word: str
    text: str
    stage: int  # counted by FROM, from 1; 0 before the first


def read(path: Path) -> list[Instruction]:
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: list[Instruction] = []
    stage = 0
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, text = line.partition(" ")
        assert word.isupper(), f"{path}: {line}"
        stage += word == "FROM"
        found.append(Instruction(word, text.strip(), stage))
    return found


@pytest.fixture(params=DOCKERFILES)
def dockerfile(request: pytest.FixtureRequest, repository: Path) -> list[Instruction]:
    return read(repository / "docker" / request.param)


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    with (repository / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["project"])


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((repository / "docker" / "compose.yaml").read_text("utf-8")))


def last(instructions: list[Instruction], word: str) -> str:
    """Of the stage that becomes the image."""
    stage = instructions[-1].stage
    found = [each.text for each in instructions if (each.word, each.stage) == (word, stage)]
    assert found, f"the last stage has no {word}"
    return found[-1]


def defaults(instructions: list[Instruction]) -> dict[str, str]:
    pairs = [each.text.partition("=") for each in instructions if each.word == "ARG"]
    return {name: value for name, equals, value in pairs if equals}


def test_the_image_runs_as_nobody_special(dockerfile: list[Instruction]) -> None:
    user = last(dockerfile, "USER")
    assert int(user) >= 1000, "a number, which Kubernetes can tell from root"
    made = [each.text for each in dockerfile if "useradd" in each.text]
    assert made
    assert all(f"--uid {user} " in text for text in made)
    after = dockerfile[[each.word for each in dockerfile].index("USER") :]
    assert not any(each.word in ("RUN", "COPY", "ADD") for each in after)


def test_the_image_says_whether_it_works(dockerfile: list[Instruction]) -> None:
    check = last(dockerfile, "HEALTHCHECK")
    assert check.endswith('CMD ["sfn-rt", "doctor"]')
    assert last(dockerfile, "ENTRYPOINT") == '["sfn-rt"]'


def test_bundle_engines_and_results_are_volumes(dockerfile: list[Instruction]) -> None:
    assert last(dockerfile, "VOLUME") == '["/bundle", "/engines", "/out"]'
    environment = " ".join(each.text for each in dockerfile if each.word == "ENV")
    assert "SFN_BUNDLE=/bundle" in environment
    assert "SFN_ENGINES=/engines" in environment
    assert "SFN_BACKEND=${BACKEND}" in environment  # which the health check opens the bundle on
    assert defaults(dockerfile)["BACKEND"] in get_args(BackendName)


def test_nothing_is_sent_to_the_makers_of_the_libraries(dockerfile: list[Instruction]) -> None:
    """ONNX Runtime reports its use from 1.29 on, also on Linux, unless it is told not to."""
    assert any("ORT_DISABLE_TELEMETRY=1" in each.text for each in dockerfile if each.word == "ENV")


def test_nothing_secret_is_baked_in(dockerfile: list[Instruction]) -> None:
    for each in dockerfile:
        if each.word in ("ARG", "ENV", "LABEL"):
            assert not SECRET.search(each.text), each.text
    copied = [each.text for each in dockerfile if each.word in ("COPY", "ADD")]
    assert copied == ["pyproject.toml README.md LICENSE ./", "runtime ./runtime"]


def test_only_the_wheel_and_its_extras_are_installed(
    dockerfile: list[Instruction], project: dict[str, Any]
) -> None:
    """So every version is in a range that pyproject.toml states."""
    installs = [each.text for each in dockerfile if "pip install" in each.text]
    (install,) = installs
    words = shlex.split(install[install.index("pip install") :].partition("&&")[0])[2:]
    wanted = [word for word in words if not word.startswith("--") and "TENSORRT_INDEX" not in word]
    assert wanted.pop(0) == "$(ls /wheels/sfn_rt-*.whl)[${EXTRAS}]"
    extras = set(defaults(dockerfile)["EXTRAS"].split(","))
    ranges = {
        each.name: each.specifier
        for extra in extras
        for each in map(Requirement, project["optional-dependencies"][extra])
    }
    for narrower in map(Requirement, wanted):  # a Jetson's TensorRT
        (oldest,) = (each.version for each in narrower.specifier if each.operator == ">=")
        assert oldest in ranges[narrower.name], narrower
    assert extras <= project["optional-dependencies"].keys()
    assert len(extras & {"cpu", "gpu"}) == 1, "the two own one import name"


def test_the_base_has_a_python_and_a_cuda_that_fit(
    dockerfile: list[Instruction], project: dict[str, Any]
) -> None:
    base = defaults(dockerfile)
    python = re.fullmatch(r"python:3\.(\d+)-slim-\w+", base["PYTHON_IMAGE"])
    assert python, base["PYTHON_IMAGE"]
    oldest = re.fullmatch(r">=3\.(\d+)", project["requires-python"])
    assert oldest
    assert int(python[1]) >= int(oldest[1])
    cuda = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-[\w-]+-ubuntu24\.04", base["CUDA_IMAGE"])
    assert cuda, base["CUDA_IMAGE"]  # Ubuntu 24.04 brings Python 3.12
    extra = "trt" if "trt" in base["EXTRAS"] else "gpu"
    (bindings,) = (
        line for line in project["optional-dependencies"][extra] if line.startswith("cuda-python")
    )
    assert bindings == f"cuda-python>={cuda[1]},<{int(cuda[1]) + 1}"


def test_every_image_is_pinned(dockerfile: list[Instruction]) -> None:
    stages = {each.text.split(" AS ")[1] for each in dockerfile if each.word == "FROM"}
    for each in dockerfile:
        if each.word != "FROM":
            continue
        image = each.text.split(" AS ")[0]
        for name, value in defaults(dockerfile).items():
            image = image.replace(f"${{{name}}}", value)
        assert image in stages or re.search(r":\d+\.\d+", image), image


def test_the_context_holds_the_runtime_and_no_data(repository: Path) -> None:
    lines = (repository / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert set(rules[1:]) == {
        "!LICENSE", "!README.md", "!pyproject.toml", "!runtime", "**/__pycache__"
    }  # fmt: skip


def test_services_write_nothing_but_engines_and_results(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == {"build", "score", "doctor"}
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        assert mounts["/bundle"]["read_only"] is True
        assert mounts["/videos"]["read_only"] is True
        writable = {target for target, mount in mounts.items() if not mount.get("read_only")}
        assert writable == {"/engines", "/out"}
        assert all(compose["volumes"].keys() >= {mounts[t]["source"]} for t in writable)


def test_services_reserve_a_gpu(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_services_are_commands_that_exist(compose: dict[str, Any]) -> None:
    from sfn_rt.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    for service in compose["services"].values():
        program, command = service["entrypoint"]
        assert program == "sfn-rt"
        assert command in commands


def commands_of(page: str) -> list[list[str]]:
    """Every command of the page's shell blocks, in words, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [
        words
        for block in blocks
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))
    ]


def test_every_command_of_the_page_exists(repository: Path, project: dict[str, Any]) -> None:
    from typer.main import get_command

    from sfn_export.cli import app as export
    from sfn_rt.cli import app as runtime

    known = {"sfn-rt": get_command(runtime), "sfn_export": get_command(export)}
    page = (repository / "docs" / "deploy.md").read_text("utf-8")
    found = 0
    for words in commands_of(page):
        for start in (i + 1 for i, word in enumerate(words) if word in known):
            program = words[start - 1]
            command = known[program].commands[words[start]]  # type: ignore[attr-defined]
            options = {name for parameter in command.params for name in parameter.opts}
            asked = {word.partition("=")[0] for word in words[start:] if word.startswith("--")}
            assert asked <= options, f"{' '.join(words)}: no {asked - options}"
            found += 1
        for file in (words[i + 1] for i, word in enumerate(words) if word == "-f"):
            assert (repository / file).is_file(), file
        for extras in re.findall(r"whl\)\[([\w,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert found > 8
    targets = (repository / "Makefile").read_text("utf-8")
    for target in re.findall(r"`make ([\w-]+)", page):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target


def test_a_jetson_changes_image_and_runtime_alone(
    repository: Path, compose: dict[str, Any]
) -> None:
    text = (repository / "docker" / "compose.jetson.yaml").read_text("utf-8")
    jetson = yaml.safe_load(text)
    assert jetson["services"].keys() == compose["services"].keys()
    for service in jetson["services"].values():
        assert service.keys() == {"image", "build", "runtime", "group_add"}
        assert service["runtime"] == "nvidia"
        assert (repository / service["build"]["dockerfile"]).is_file()
