"""Plans of jobs, gone through as a runner does."""


def finish_all(plan, row_of):
    """The jobs of a plan in their order, each finished with the row that ``row_of`` makes up for it."""
    rows, order = {}, []
    while True:
        job = next((job for job in plan.jobs(rows) if job is not None and job not in rows), None)
        if job is None:
            return order
        rows[job] = row_of(job)
        order.append(job)
