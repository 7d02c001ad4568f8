"""Prints the token that Airflow's executor gives to the task instance in the argument. It is good for starting the task alone."""

import sys

from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args
from airflow.configuration import conf

generator = JWTGenerator(
    valid_for=60,
    audience=conf.get_mandatory_list_value("execution_api", "jwt_audience")[0],
    issuer=conf.get("api_auth", "jwt_issuer", fallback=None),
    **get_signing_args(make_secret_key_if_needed=False),
)
print(generator.generate({"sub": sys.argv[1], "scope": "workload"}))
