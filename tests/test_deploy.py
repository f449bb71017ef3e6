"""The profiles for several machines load, and are the project's own dagster.yaml but for what they say they change."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster_aws.ecs import EcsRunLauncher
from dagster_k8s import K8sRunLauncher

from payments_pipeline.dagster_storage import PooledEventLogStorage

ROOT = Path(__file__).resolve().parents[1]
PROFILES = {"ecs": EcsRunLauncher, "kubernetes": K8sRunLauncher}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


@pytest.fixture
def cluster(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a container of the daemon finds; nothing of it is asked when an instance is opened."""
    monkeypatch.setenv("PAYMENTS_POSTGRES_URL", "postgresql://unused@127.0.0.1:1/unused")
    monkeypatch.setenv("PAYMENTS_PROCESSOR", "none")
    monkeypatch.setenv(
        "PAYMENTS_DAGSTER_POSTGRES_URL", empty_database_url.replace("postgresql://", "postgresql+psycopg2://")
    )
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    monkeypatch.setenv("DAGSTER_K8S_PIPELINE_RUN_IMAGE", "payments-pipeline:1")
    monkeypatch.setenv("DAGSTER_K8S_PIPELINE_RUN_NAMESPACE", "payments")
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_loads_with_its_launcher_and_the_projects_storage(name: str, tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "deploy" / f"dagster-{name}.yaml").read_text("utf-8"))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert type(instance.run_launcher) is PROFILES[name]
        assert isinstance(instance.event_log_storage, PooledEventLogStorage)
        assert instance.run_launcher.supports_check_run_worker_health
        assert instance.get_runs_count() == 0


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_differs_in_its_launcher_and_in_how_many_runs_there_are(name: str) -> None:
    ours, profile = read(ROOT / "dagster.yaml"), read(ROOT / "deploy" / f"dagster-{name}.yaml")
    assert {key for key in ours | profile if ours.get(key) != profile.get(key)} == {"concurrency", "run_launcher"}


@pytest.mark.usefixtures("cluster")
def test_a_run_on_kubernetes_is_a_job_of_the_image_with_settings_and_secrets_that_starts_once(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "deploy/dagster-kubernetes.yaml").read_text("utf-8"))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, K8sRunLauncher)
        assert (launcher.job_image, launcher.job_namespace) == ("payments-pipeline:1", "payments")
        assert (launcher.env_config_maps, launcher.env_secrets) == (["payments-pipeline"], ["payments-pipeline"])
        assert launcher.run_k8s_config["job_spec_config"]["backoff_limit"] == 0
