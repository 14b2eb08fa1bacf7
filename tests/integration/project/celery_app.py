"""The Celery app of a validator: prefork, children that are recycled, and a broker in a folder."""

import os
from pathlib import Path

import django
from celery import Celery
from celery.signals import worker_process_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

HERE = Path(__file__).parent
FOLDER = HERE / "broker"
FOLDER.mkdir(exist_ok=True)

app = Celery("validator", broker="filesystem://", include=["callbacks", "tasks", "submitted", "reporting"])
app.conf.update(
    broker_transport_options={
        **{name: str(FOLDER) for name in ("data_folder_in", "data_folder_out")},
        "control_folder": str(HERE / "control"),
        "polling_interval": 0.05,
    },
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_max_tasks_per_child=2,
)


@app.task
def report_in_both_ways(job_uuid: str, status: str) -> None:
    """What the old code does in a task, by the example of the page."""
    from reporting import report  # noqa: PLC0415

    payload = {"message_type": "V0JobStatusUpdate", "uuid": job_uuid, "status": status, "metadata": {}}
    report(job_uuid, {"type": "job_status_update", "payload": payload})


@worker_process_init.connect
def note_child(**_: object) -> None:
    """Each child leaves its process id."""
    with (HERE / "children").open("a") as file:
        file.write(f"{os.getpid()}\n")
