//! The queries that are ended: one per shape of plan.

/// Queries of every shape, each of which calls `fuse`.
pub(crate) const END_QUERIES: [(&str, &str); 22] = [
    ("filter", "SELECT a FROM t WHERE fuse(a) % 3 = 0"),
    ("projection", "SELECT fuse(a) + 1 AS x FROM t"),
    ("groups", "SELECT b, sum(fuse(a)) AS s, count(*) AS n FROM t GROUP BY b"),
    ("group keys", "SELECT fuse(a) AS k, count(DISTINCT b) AS n FROM t GROUP BY fuse(a)"),
    ("one group", "SELECT sum(fuse(a)) AS s FROM t"),
    ("sort", "SELECT a, b FROM t ORDER BY b, fuse(a) DESC"),
    ("above a sort", "SELECT fuse(a) AS x FROM (SELECT a FROM t ORDER BY a LIMIT 1000)"),
    ("top n", "SELECT a FROM t ORDER BY fuse(a) % 100, a LIMIT 10"),
    ("build side", "SELECT a, d FROM t JOIN (SELECT fuse(c) AS c, d FROM u) u ON b = c"),
    ("probe side", "SELECT a, d FROM (SELECT a, fuse(b) AS b FROM t) t JOIN u ON b = c"),
    ("full join", "SELECT a, d FROM t FULL JOIN u ON fuse(b) = c + 20"),
    ("residual filter", "SELECT a, d FROM t LEFT JOIN u ON b = c AND fuse(a) > d"),
    ("loop join", "SELECT a, d FROM t JOIN u ON fuse(a) < d AND b + c < 9"),
    ("not in", "SELECT a FROM t WHERE b NOT IN (SELECT fuse(c) FROM u WHERE c > 30)"),
    ("exists", "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u WHERE c = b AND fuse(d) > 5)"),
    ("union", "SELECT x FROM (SELECT fuse(a) AS x FROM t UNION ALL SELECT c FROM u) ORDER BY x"),
    ("intersect", "SELECT b FROM t INTERSECT SELECT fuse(c) FROM u"),
    ("except", "SELECT fuse(b) AS b FROM t EXCEPT SELECT c FROM u WHERE c < 40"),
    ("window", "SELECT a, sum(fuse(a)) OVER (PARTITION BY b ORDER BY a) AS s FROM t"),
    ("scalar subquery", "SELECT a FROM t WHERE a > (SELECT avg(fuse(c)) FROM u)"),
    ("below a foreign node", "SELECT unnest([fuse(a), b]) AS x FROM t"),
    ("above a foreign node", "SELECT fuse(x) AS y FROM (SELECT unnest([a, b]) AS x FROM t)"),
];

/// All steps if they are few, else a sample with the first and the last.
pub(crate) fn steps(last: usize) -> Vec<usize> {
    let stride = last.div_ceil(40).max(1);
    let mut steps: Vec<usize> = (1..=last).step_by(stride).collect();
    if steps.last() != Some(&last) && last > 0 {
        steps.push(last);
    }
    steps
}
