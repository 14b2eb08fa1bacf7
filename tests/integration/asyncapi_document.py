"""docs/asyncapi.yaml, compared with the schema of AsyncAPI itself, which an npm package has; needs npm on PATH."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from downloads import download

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "docs" / "asyncapi.yaml").read_text())


@pytest.fixture(scope="module")
def validator(tmp_path_factory) -> jsonschema.Draft7Validator:
    """The validator of documents of this version of AsyncAPI."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on PATH: docs/asyncapi.yaml was not validated")
    folder = tmp_path_factory.mktemp("asyncapi")
    (folder / "package.json").write_text("{}")
    download(folder, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "@asyncapi/specs@6")
    schemas = folder / "node_modules" / "@asyncapi" / "specs" / "schemas"
    schema = json.loads((schemas / f"{DOCUMENT['asyncapi']}-without-$id.json").read_text())
    return jsonschema.Draft7Validator(schema)


@pytest.mark.timeout(400)
def test_valid(validator):
    """Nothing is wrong with the document, and a wrong one is noticed."""
    assert [] == [f"{list(error.path)}: {error.message[:300]}" for error in validator.iter_errors(DOCUMENT)]
    wrong = copy.deepcopy(DOCUMENT)
    wrong["operations"]["publishUpdate"]["action"] = "publish"
    wrong["channels"]["update"]["adress"] = "job.status"
    wrong["components"]["messages"]["update"]["payload"] = {"type": "text"}
    places = {next(iter(error.path)) for error in validator.iter_errors(wrong)}
    assert {"operations", "channels", "components"} == places
