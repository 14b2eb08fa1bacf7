import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pages import ROOT

CONTAINERFILE = (ROOT / "Containerfile").read_text()
LOCKS = {extra: (ROOT / f"requirements{extra}.lock").read_text() for extra in ("", "-otel", "-console")}
"""What the image installs, by the extra that is in it."""

each_lock = pytest.mark.parametrize("extra", LOCKS)


def of_stage(stage: int, keyword: str) -> list[str]:
    """The arguments of a keyword in one stage of the Containerfile; a stage begins with FROM."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    lines = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1 + stage].splitlines()
    return [" ".join(line.split()[1:]) for line in lines if line.startswith(f"{keyword} ")]


def pins(extra: str = "") -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of every pin, by canonical name."""
    logical = re.sub(r"^\s*#.*\n?", "", LOCKS[extra], flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, logical.splitlines())):
        requirement = Requirement(line.partition(" --hash")[0])
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        found[canonicalize_name(requirement.name)] = (pin.version, re.findall(r"--hash=(\S+)", line))
    return found


def test_dependencies_are_pinned_within_their_ranges():
    """Every dependency that the project declares is in the lock, at a version that the project allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["server"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)][0]), text


@each_lock
def test_every_pin_is_hashed(extra):
    """Every pin has at least one hash, and every hash is a complete SHA-256."""
    for name, (_, hashes) in pins(extra).items():
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name


@each_lock
def test_lock_names_no_address(extra):
    """The lock contains no address, no option that names an index, and no path of the machine that wrote it."""
    options = [line for line in LOCKS[extra].splitlines() if line.startswith("-")]
    assert options == []
    assert re.findall(r"https?:|://|index|find-links|file:|/\w+/", LOCKS[extra]) == []


def test_only_development_tools_are_left_out():
    """Development tools and the embedded server are not in the image."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    groups = [group for name, group in extras.items() if name not in {"server", "nkeys"}]
    left_out = {canonicalize_name(Requirement(text).name) for group in groups for text in group}
    assert left_out & pins().keys() == set()


@pytest.mark.parametrize("extra", ["otel", "console"])
def test_extras_add_to_the_lock(extra):
    """A lock with an extra has the same pins, and those of the extra within their ranges."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    more = pins(f"-{extra}")
    assert pins() == {name: pin for name, pin in more.items() if name in pins()}
    for requirement in map(Requirement, wanted):
        if requirement.name != "job-status-relay":
            assert requirement.specifier.contains(more[canonicalize_name(requirement.name)][0])


@each_lock
def test_python_of_the_lock(extra):
    """The lock was resolved for the Python of the image."""
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)-slim$", CONTAINERFILE, flags=re.MULTILINE)
    (resolved,) = re.findall(r"pip-compile with Python (\d+\.\d+)", LOCKS[extra])
    assert image == resolved


def test_dependencies_only_from_the_lock():
    """Dependencies are installed as wheels with checked hashes; the project is installed without dependencies."""
    lock, project = [run for run in of_stage(0, "RUN") if " install " in run]
    assert {"--require-hashes", "--only-binary"} - set(lock.split()) == set()
    assert (True, ["LOCK=requirements.lock"]) == (lock.endswith("-r ${LOCK}"), of_stage(0, "ARG"))
    assert "--no-deps" in project.split()


def test_what_is_published_as_source_alone_may_be_built():
    """Packages that are published only as source are excepted from the rule that only wheels are installed."""
    lock = next(run for run in of_stage(0, "RUN") if "${LOCK}" in run)
    excepted = re.findall(r"--no-binary (\S+)", lock)
    assert sorted(name for name, (_, hashed) in pins().items() if len(hashed) == 1) == excepted


def test_final_stage_installs_nothing():
    """The final image has no installer, and no additional system packages."""
    (run,) = of_stage(1, "RUN")
    assert run.startswith("pip uninstall --yes")
    assert re.findall(r"apt|apk|\binstall\b|gcc|build-essential", run) == []


def test_user_is_numeric_and_not_root():
    """The image runs as a numeric user other than root, so that Kubernetes can verify runAsNonRoot."""
    (user,) = of_stage(1, "USER")
    assert [int(part) > 0 for part in user.split(":")] == [True, True]


def test_what_runs():
    """The image runs `relay serve`; another command replaces only `serve`."""
    assert (of_stage(1, "ENTRYPOINT"), of_stage(1, "CMD")) == (['["relay"]'], ['["serve"]'])


def test_writes_nothing():
    """Nothing is compiled at run time: the builder makes the bytecode, and writing it is switched off."""
    assert any("python -m compileall" in run for run in of_stage(0, "RUN"))
    (environment,) = of_stage(1, "ENV")
    assert "PYTHONDONTWRITEBYTECODE=1" in environment.split()


def test_build_context_holds_what_is_copied():
    """The ignore file allows exactly the files that the builder copies."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {source for rest in of_stage(0, "COPY") for source in rest.split()[:-1]}
    assert "*" in rules
    assert allowed == copied
