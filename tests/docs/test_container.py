import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "Containerfile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


def instructions() -> list[tuple[str, str]]:
    """Every instruction of the Containerfile with its arguments, comments left out and continued lines joined."""
    lines = [line for line in CONTAINERFILE.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (keyword, " ".join(rest.split())) for keyword, _, rest in (line.partition(" ") for line in joined.split("\n"))
    ]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, its FROM first."""
    found: list[list[tuple[str, str]]] = []
    for keyword, rest in instructions():
        if keyword == "FROM":
            found.append([])
        if found:
            found[-1].append((keyword, rest))
    return found


def of_stage(stage: int, keyword: str) -> list[str]:
    return [rest for name, rest in stages()[stage] if name == keyword]


def pins() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of every pin, by canonical name."""
    logical = re.sub(r"^\s*#.*\n?", "", LOCK, flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, logical.splitlines())):
        requirement = Requirement(line.partition(" --hash")[0])
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        found[canonicalize_name(requirement.name)] = (pin.version, re.findall(r"--hash=(\S+)", line))
    return found


def test_dependencies_are_pinned_within_their_ranges():
    """Every dependency that the project declares is in the lock, at a version that the project allows."""
    declared = [
        Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    locked = pins()
    wrong = {
        requirement.name: locked.get(canonicalize_name(requirement.name))
        for requirement in declared
        if not requirement.specifier.contains(locked.get(canonicalize_name(requirement.name), ("0",))[0])
    }
    assert wrong == {}
    assert len(declared) <= len(locked)


def test_every_pin_is_hashed():
    """Every pin carries at least one hash, and every hash is a whole SHA-256."""
    hashes = {name: hashed for name, (_, hashed) in pins().items()}
    assert [name for name, hashed in hashes.items() if not hashed] == []
    malformed = [
        entry for hashed in hashes.values() for entry in hashed if not re.fullmatch(r"sha256:[0-9a-f]{64}", entry)
    ]
    assert malformed == []


def test_lock_names_no_address():
    """The lock holds neither an address, nor an option that names an index, nor a path of the machine that wrote it."""
    options = [line for line in LOCK.splitlines() if line.startswith("-")]
    assert options == []
    assert re.findall(r"http|://|index|find-links|file:|/\w+/", LOCK) == []


def test_only_development_tools_are_left_out():
    """What belongs to development or to the embedded server is not in the image."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    left_out = {canonicalize_name(Requirement(text).name) for group in extras.values() for text in group}
    assert left_out & pins().keys() == set()


def test_two_stages_from_one_image():
    """What builds and what runs are separate stages of the same Python image, so that the copied environment fits."""
    assert [of_stage(stage, "FROM") for stage in range(len(stages()))] == [
        ["${PYTHON_IMAGE} AS builder"],
        ["${PYTHON_IMAGE} AS final"],
    ]
    assert of_stage(1, "COPY") == ["--from=builder /opt/relay /opt/relay"]


def test_python_of_the_lock():
    """The lock was resolved for the Python of the image."""
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)-slim$", CONTAINERFILE, flags=re.MULTILINE)
    (resolved,) = re.findall(r"pip-compile with Python (\d+\.\d+)", LOCK)
    assert image == resolved


def test_dependencies_only_from_the_lock():
    """Dependencies are installed by hash and as wheels, and the project without any of its own."""
    lock, project = [run for run in of_stage(0, "RUN") if " install " in run]
    assert {"--require-hashes", "--only-binary"} - set(lock.split()) == set()
    assert lock.endswith("-r requirements.lock")
    assert "--no-deps" in project.split()


def test_what_is_published_as_source_alone_may_be_built():
    """What has one file on the registry, which is source then, is excepted from the rule that takes wheels only."""
    lock = next(run for run in of_stage(0, "RUN") if "requirements.lock" in run)
    excepted = re.findall(r"--no-binary (\S+)", lock)
    assert sorted(name for name, (_, hashed) in pins().items() if len(hashed) == 1) == excepted


def test_final_stage_installs_nothing():
    """What runs has no installer, and no package of the system is added to it."""
    (run,) = of_stage(1, "RUN")
    assert run.startswith("pip uninstall --yes")
    assert re.findall(r"apt|apk|\binstall\b|gcc|build-essential", run) == []


def test_user_is_numeric_and_not_root():
    """The image runs as a numeric user other than root, so that Kubernetes can verify runAsNonRoot."""
    (user,) = of_stage(1, "USER")
    assert [int(part) > 0 for part in user.split(":")] == [True, True]


def test_what_runs():
    """The image runs `relay serve`, and another command replaces `serve` alone."""
    assert (of_stage(1, "ENTRYPOINT"), of_stage(1, "CMD")) == (['["relay"]'], ['["serve"]'])


def test_writes_nothing():
    """Nothing is compiled at run time: the bytecode is made in the builder, and writing it is switched off."""
    assert any("python -m compileall" in run for run in of_stage(0, "RUN"))
    (environment,) = of_stage(1, "ENV")
    assert "PYTHONDONTWRITEBYTECODE=1" in environment.split()


def test_build_context_holds_what_is_copied():
    """The ignore file lets in exactly what the builder copies, and nothing else."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {source for rest in of_stage(0, "COPY") for source in rest.split()[:-1]}
    assert "*" in rules
    assert allowed == copied
