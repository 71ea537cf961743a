"""Images and the files of Kubernetes, as the guide for operators has them used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.boxes.fleet import IMAGE, ROOT, Fleet, run

GUIDE = ROOT / "docs" / "operations.md"
VERSIONS = ("1.30", "1.37")  # of Kubernetes


def test_an_image_with_agents_and_packages_of_ones_own(fleet: Fleet, tmp_path: Path) -> None:
    """Built by the Dockerfile of the guide."""
    [dockerfile] = re.findall(r"^```dockerfile\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "Dockerfile").write_text(dockerfile)
    (tmp_path / "requirements.txt").write_text("humanize==4.14.0\n")
    (tmp_path / "my_agents").mkdir()
    code = "import humanize\nfrom warren import Warren\n\napp = Warren()\n\n"
    agent = '@app.agent("size")\nasync def size(count: int) -> str:\n    return humanize.naturalsize(count)\n'
    (tmp_path / "my_agents" / "__init__.py").write_text(code + agent)
    image = f"{IMAGE}-with-agents"
    run("docker", "build", "--network", "host", "--tag", image, str(tmp_path))
    shown = "import my_agents, asyncio; print(asyncio.run(my_agents.size(10**6)))"
    assert run("docker", "run", "--rm", image, "python", "-c", shown).strip() == "1.0 MB"
    assert run("docker", "run", "--rm", image, "id", "-u").strip() == "10001"


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_its_own_kinds(version: str) -> None:
    """Against the JSON Schemas of Kubernetes; those of the operators and KEDA are not among them."""
    validator = pytest.importorskip("kubernetes_validate", reason="`make boxes` brings kubernetes-validate")
    seen = 0
    for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if one["apiVersion"].split("/")[0] in ("rabbitmq.com", "keda.sh", "kustomize.config.k8s.io"):
                continue
            validator.validate(one, version, strict=True)
            seen += 1
    assert seen > 10
