-- How many of a run of a producer's numbers are there after all, and for whom does it work?
-- Parameters: worker_id, first, last.
SELECT
    uniqExactIf(worker_sequence, worker_sequence BETWEEN {first:UInt64} AND {last:UInt64}) AS stored,
    arraySort(groupUniqArrayIf(1000)(tenant, tenant != '')) AS tenants
FROM usage_log
WHERE worker_id = {worker_id:String}
