-- Groups and joins of various key types and numbers of groups. {rows} rows.
CREATE TABLE g AS
SELECT
    'id' || lpad((1 + hash_at(i, 1) % 100)::VARCHAR, 3, '0') AS id1,
    'id' || lpad((1 + hash_at(i, 2) % 100)::VARCHAR, 3, '0') AS id2,
    'id' || lpad((1 + hash_at(i, 3) % ({rows} // 100))::VARCHAR, 10, '0') AS id3,
    (1 + hash_at(i, 4) % 100)::INTEGER AS id4,
    (1 + hash_at(i, 5) % 100)::INTEGER AS id5,
    (1 + hash_at(i, 6) % ({rows} // 100))::INTEGER AS id6,
    (1 + hash_at(i, 7) % 5)::INTEGER AS v1,
    (1 + hash_at(i, 8) % 15)::INTEGER AS v2,
    round(random_at(i, 9) * 100, 6) AS v3
FROM range({rows}) AS numbers(i);
CREATE TABLE small AS
SELECT k::INTEGER AS id1, 'id' || k AS id4, round(random_at(k, 10) * 100, 6) AS v2
FROM range(1, 12) AS numbers(k);
CREATE TABLE medium AS
SELECT (k % 11 + 1)::INTEGER AS id1, k::INTEGER AS id2, 'id' || k % 11 AS id4, 'id' || k AS id5,
    round(random_at(k, 11) * 100, 6) AS v2
FROM range(1, {rows} // 1000 + 1) AS numbers(k);
CREATE TABLE large AS
SELECT (k % 11 + 1)::INTEGER AS id1, (k % ({rows} // 1000) + 1)::INTEGER AS id2, k::INTEGER AS id3,
    'id' || k % 11 AS id4, 'id' || k % ({rows} // 1000) AS id5, 'id' || k AS id6,
    round(random_at(k, 12) * 100, 6) AS v2
FROM range(1, {rows} + 1) AS numbers(k);
CREATE TABLE x AS
SELECT (1 + hash_at(i, 13) % 12)::INTEGER AS id1, (1 + hash_at(i, 14) % ({rows} // 900))::INTEGER AS id2,
    (1 + hash_at(i, 15) % ({rows} * 10 // 9))::INTEGER AS id3, 'id' || (1 + hash_at(i, 16) % 12) AS id4,
    'id' || (1 + hash_at(i, 17) % ({rows} // 900)) AS id5,
    'id' || (1 + hash_at(i, 15) % ({rows} * 10 // 9)) AS id6, round(random_at(i, 18) * 100, 6) AS v1
FROM range({rows}) AS numbers(i);
