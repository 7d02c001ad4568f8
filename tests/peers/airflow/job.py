"""A DAG with one task, which nobody has to run: the test is the task."""

from airflow.sdk import dag, task


@dag(schedule=None)
def job():
    @task
    def work(): ...

    work()


job()
