"""Prefect flows: which stages, in which order, when."""

import os

# read by Prefect when it is first imported; what a user has set stays
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # 20 is too few on a busy machine
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # without a network it logs an error at each start
os.environ.setdefault("PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL", "1")  # flows.chain waits for it

# read by torch's threads: on a busy machine their default, to wait for each other for long, costs most of the time
os.environ.setdefault("GOMP_SPINCOUNT", "100000")
