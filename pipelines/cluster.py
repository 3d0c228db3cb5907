"""The Kubeflow Pipelines API, v2beta1: upload a pipeline, start a run, keep one schedule.

Spoken through the generated client, because the SDK's own class asks the server questions when it is made and
hides the options that a safe schedule needs.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_server_api as api
from urllib3.exceptions import HTTPError

from mtlops.errors import PlatformError, UsageError

PIPELINE = "mtlops-training"
"""Name of the pipeline that versions belong to where nothing else is said."""

_PAGE = 100
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Version:
    """An uploaded version of the pipeline, by the server's ids."""

    pipeline_id: str
    version_id: str

    @property
    def reference(self) -> api.V2beta1PipelineVersionReference:
        """The version as runs and schedules name it."""
        return api.V2beta1PipelineVersionReference(pipeline_id=self.pipeline_id, pipeline_version_id=self.version_id)


class Cluster:
    """One Kubeflow Pipelines server.

    Args:
        client: generated client, with the server's address and the token.
        namespace: of a multi-user Kubeflow; empty otherwise.
    """

    def __init__(self, client: api.ApiClient, *, namespace: str = "") -> None:
        self._host, self._namespace = client.configuration.host, namespace
        self._experiments = api.ExperimentServiceApi(client)
        self._pipelines = api.PipelineServiceApi(client)
        self._uploads = api.PipelineUploadServiceApi(client)
        self._runs = api.RunServiceApi(client)
        self._schedules = api.RecurringRunServiceApi(client)

    @classmethod
    def connect(cls, host: str, *, token: str = "", namespace: str = "") -> "Cluster":
        """Returns the server at `host` once it has answered that it is healthy.

        Raises:
            UsageError: no host is given.
            PlatformError: it cannot be reached, or refuses.
        """
        if not host:
            raise UsageError("which cluster? Give --host URL, or set KFP_ENDPOINT.")
        configuration = api.Configuration(host=host.rstrip("/"))
        configuration.retries = 1
        if token:
            configuration.api_key = {"authorization": token}
            configuration.api_key_prefix = {"authorization": "Bearer"}
        client = api.ApiClient(configuration)
        with _explained(configuration.host):
            api.HealthzServiceApi(client).healthz_service_get_healthz(_request_timeout=_TIMEOUT_SECONDS)
        return cls(client, namespace=namespace)

    def upload(self, text: str, *, pipeline: str = PIPELINE) -> Version:
        """Returns the version of a pipeline with this compiled text, uploaded unless the server has it already.

        Raises:
            PlatformError: the server refuses or cannot be reached.
        """
        name = f"{pipeline}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        with _explained(self._host):
            pipeline_id = self._pipeline_id(pipeline)
            for version in _pages(
                lambda token: self._pipelines.pipeline_service_list_pipeline_versions(
                    pipeline_id, page_size=_PAGE, page_token=token
                ),
                "pipeline_versions",
            ):
                if version.display_name == name:
                    return Version(pipeline_id, version.pipeline_version_id)
            return Version(pipeline_id, self._upload_version(text, name, pipeline_id))

    def start(self, version: Version, arguments: Mapping[str, str], *, experiment: str, name: str) -> str:
        """Starts one run and returns its id.

        Raises:
            PlatformError: the server refuses or cannot be reached.
        """
        with _explained(self._host):
            run = api.V2beta1Run(
                display_name=name,
                experiment_id=self._experiment_id(experiment),
                pipeline_version_reference=version.reference,
                runtime_config=api.V2beta1RuntimeConfig(parameters=dict(arguments)),
            )
            run_id: str = self._runs.run_service_create_run(run).run_id
            return run_id

    def schedule(self, version: Version, arguments: Mapping[str, str], *, experiment: str, name: str, cron: str) -> str:
        """Makes one schedule, puts it in the place of all others of that name, and returns its id.

        A schedule cannot be changed. The new one is made paused, the old ones are paused, the new one is let go,
        and only then are the old ones removed: stopped at any point, at most one of them runs, and calling again
        finishes the work. Missed runs are not made up for, and no two runs overlap.

        Raises:
            UsageError: `cron` does not have six fields.
            PlatformError: the server refuses or cannot be reached.
        """
        check_cron(cron)
        with _explained(self._host):
            experiment_id = self._experiment_id(experiment)
            old = [found.recurring_run_id for found in self._named(name, experiment_id)]
            new: str = self._schedules.recurring_run_service_create_recurring_run(
                api.V2beta1RecurringRun(
                    display_name=name,
                    experiment_id=experiment_id,
                    pipeline_version_reference=version.reference,
                    runtime_config=api.V2beta1RuntimeConfig(parameters=dict(arguments)),
                    trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
                    max_concurrency="1",
                    no_catchup=True,
                    mode=api.RecurringRunMode.DISABLE,
                )
            ).recurring_run_id
            for schedule_id in old:
                self._schedules.recurring_run_service_disable_recurring_run(schedule_id)
            self._schedules.recurring_run_service_enable_recurring_run(new)
            for schedule_id in old:
                self._schedules.recurring_run_service_delete_recurring_run(schedule_id)
            return new

    def _pipeline_id(self, name: str) -> str:
        try:
            found = self._pipelines.pipeline_service_get_pipeline_by_name(name, **self._scope())
        except api.ApiException as error:
            if error.status != 404:
                raise
            body = api.V2beta1Pipeline(display_name=name, name=name, **self._scope())
            found = self._pipelines.pipeline_service_create_pipeline(body)
        pipeline_id: str = found.pipeline_id
        return pipeline_id

    def _upload_version(self, text: str, name: str, pipeline_id: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.yaml"
            path.write_text(text, encoding="ascii")
            version = self._uploads.upload_pipeline_version(
                str(path), name=name, display_name=name, pipelineid=pipeline_id
            )
        version_id: str = version.pipeline_version_id
        return version_id

    def _experiment_id(self, name: str) -> str:
        found = _pages(
            lambda token: self._experiments.experiment_service_list_experiments(
                page_size=_PAGE, page_token=token, **self._scope()
            ),
            "experiments",
        )
        known = next((experiment for experiment in found if experiment.display_name == name), None)
        if known is None:
            body = api.V2beta1Experiment(display_name=name, **self._scope())
            known = self._experiments.experiment_service_create_experiment(body)
        experiment_id: str = known.experiment_id
        return experiment_id

    def _named(self, name: str, experiment_id: str) -> list[Any]:
        found = _pages(
            lambda token: self._schedules.recurring_run_service_list_recurring_runs(
                experiment_id=experiment_id, page_size=_PAGE, page_token=token
            ),
            "recurring_runs",
        )
        return [schedule for schedule in found if schedule.display_name == name]

    def _scope(self) -> dict[str, str]:
        return {"namespace": self._namespace} if self._namespace else {}


def check_cron(cron: str) -> None:
    """Does nothing when `cron` has the six fields that Kubeflow reads.

    Raises:
        UsageError: it has another number; five are a crontab's, which Kubeflow would read shifted by one.
    """
    fields = cron.split()
    if len(fields) == 5:
        raise UsageError(
            f"--cron {cron!r}: five fields, but Kubeflow reads six, seconds first, and would take your minutes for "
            f"seconds. Write '0 {cron}'."
        )
    if len(fields) != 6:
        raise UsageError(f"--cron {cron!r}: needs six fields: second, minute, hour, day, month, weekday.")


def _pages(request: Callable[[str], Any], items: str) -> Iterator[Any]:
    """All items of a listing, page after page."""
    token = ""
    while True:
        page = request(token)
        yield from getattr(page, items) or []
        token = page.next_page_token
        if not token:
            return


@contextmanager
def _explained(host: str) -> Iterator[None]:
    """Turns what the client raises into a PlatformError that names the server."""
    try:
        yield
    except api.ApiException as error:
        said = str(error.body or error.reason).strip().replace("\n", " ")[:300]
        raise PlatformError(f"{host}: answered {error.status} ({said}).") from error
    except (HTTPError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise PlatformError(f"{host}: cannot be reached ({reason}). Check --host or KFP_ENDPOINT.") from error
