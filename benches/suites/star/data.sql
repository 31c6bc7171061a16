-- Sales with skewed keys that depend on each other: a store sells few products, customers buy where
-- they live, and the last weeks of a year have most sales. {rows} rows.
CREATE TABLE sales AS
WITH numbers AS (
    SELECT i, skewed(i, 1, 500) AS store, random_at(i, 2) AS a, random_at(i, 3) AS b
    FROM range({rows}) AS numbers(i)
)
SELECT
    i::BIGINT AS id,
    (DATE '2022-01-01' + (1094 * sqrt(a))::INTEGER) AS day,
    (1 + store)::INTEGER AS store_id,
    (1 + (store * 37 + skewed(i, 4, 400)) % 20000)::INTEGER AS product_id,
    (1 + (store * 211 + skewed(i, 5, 3000)) % 100000)::BIGINT AS customer_id,
    (1 + skewed(i, 6, 20))::INTEGER AS quantity,
    ((1 + store % 7) * 1.99 + b * 50)::DECIMAL(12, 2) AS price,
    CASE WHEN b < 0.7 THEN 0 ELSE round(b * 0.3, 2) END AS discount,
    ['card', 'cash', 'voucher', 'transfer'][1 + skewed(i, 7, 4)] AS payment
FROM numbers;
CREATE TABLE stores AS
SELECT (1 + k)::INTEGER AS store_id, 'Store ' || k AS store, 'City ' || k % 90 AS city,
    ['north', 'south', 'east', 'west'][1 + k % 4] AS region, (100 + k * 13 % 900)::INTEGER AS area
FROM range(500) AS numbers(k);
CREATE TABLE products AS
SELECT (1 + k)::INTEGER AS product_id, 'Product ' || k AS product, 'Brand ' || k % 700 AS brand,
    ['food', 'toys', 'books', 'tools', 'garden', 'music'][1 + k % 700 % 6] AS category,
    (k % 97 + 0.49)::DECIMAL(10, 2) AS list_price
FROM range(20000) AS numbers(k);
CREATE TABLE customers AS
SELECT (1 + k)::BIGINT AS customer_id, 'Customer number ' || k AS name, 'City ' || hash_at(k, 0) % 90 AS city,
    (1940 + hash_at(k, 1) % 70)::INTEGER AS born, ['gold', 'silver', 'none'][1 + skewed(k, 2, 3)] AS card
FROM range(100000) AS numbers(k);
