-- One wide table of page views: mostly in order of time, texts that are often empty or repeated,
-- and keys of which few are frequent. {rows} rows.
CREATE TABLE hits AS
WITH numbers AS (
    SELECT
        i,
        random_at(i, 1) AS a, random_at(i, 2) AS b, random_at(i, 3) AS c, random_at(i, 4) AS d,
        skewed(i, 5, {rows} // 8) AS user,
        skewed(i, 6, 4000) AS counter,
        skewed(i, 7, 200000) AS page,
        skewed(i, 8, 60000) AS phrase
    FROM range({rows}) AS numbers(i)
)
SELECT
    hash_at(i, 0) AS watch_id,
    TIMESTAMP '2024-07-01' + INTERVAL 1 SECOND * (i * 2592000 // {rows} + (a * 300)::BIGINT)
        AS event_time,
    (TIMESTAMP '2024-07-01' + INTERVAL 1 SECOND * (i * 2592000 // {rows}))::DATE AS event_date,
    (counter * 17 + 11)::INTEGER AS counter_id,
    hash_at(user, 0) AS user_id,
    (hash_at(user, 3) % 5000)::INTEGER AS region_id,
    ['de', 'fr', 'us', 'cn', 'in', 'br', 'jp', 'pl', 'se', 'ng'][1 + (hash_at(user, 5) % 10)]
        AS country,
    (hash_at(user, 7) % 90)::SMALLINT AS os,
    (hash_at(user, 11) % 80)::SMALLINT AS user_agent,
    'https://' || site(counter) || '/' || ['catalog', 'item', 'news', 'search', 'user'][1 + page % 5]
        || '/' || page || CASE WHEN b < 0.2 THEN '?from=' || (hash_at(i, 13) % 100000) ELSE '' END
        AS url,
    CASE WHEN c < 0.4 THEN '' ELSE 'https://' || site(skewed(i, 17, 9000)) || '/'
        || (page * 7 % 3000) END AS referer,
    CASE WHEN d < 0.05 THEN '' ELSE 'Page ' || page || ' of ' || site(counter)
        || CASE WHEN page % 50 = 0 THEN ' - Google and others' ELSE ' - all about it' END END
        AS title,
    CASE WHEN a < 0.86 THEN '' ELSE
        ['how to ', 'buy ', 'cheap ', 'weather ', ''][1 + phrase % 5] || 'word' || phrase % 977
        || ' ' || 'thing' || phrase END AS search_phrase,
    CASE WHEN a < 0.86 THEN 0 ELSE 1 + phrase % 30 END::SMALLINT AS search_engine_id,
    CASE WHEN hash_at(user, 19) % 10 < 9 THEN '' ELSE
        ['Phone ', 'Tab ', 'Note ', 'Fold '][1 + hash_at(user, 23) % 4] || hash_at(user, 29) % 150 END
        AS mobile_model,
    CASE WHEN hash_at(user, 19) % 10 < 9 THEN 0 ELSE 1 + hash_at(user, 23) % 4 END::SMALLINT
        AS mobile_phone,
    CASE WHEN b < 0.98 THEN 0 ELSE (hash_at(i, 31) % 60) END::SMALLINT AS adv_engine_id,
    (hash_at(i, 37) % 10 = 0)::SMALLINT AS is_refresh,
    (hash_at(i, 41) % 20 = 0)::SMALLINT AS dont_count,
    (hash_at(i, 43) % 25 = 0)::SMALLINT AS is_link,
    (hash_at(i, 47) % 400 = 0)::SMALLINT AS is_download,
    (skewed(i, 53, 11) - 1)::SMALLINT AS traffic_source,
    [1920, 1366, 1536, 1440, 1280, 390, 412][1 + hash_at(user, 59) % 7]::SMALLINT AS width,
    [1080, 768, 864, 900, 720, 844, 915][1 + hash_at(user, 61) % 7]::SMALLINT AS height,
    (hash_at(user, 67) >> 33)::INTEGER AS client_ip,
    hash_at(page, 71) AS url_hash,
    hash_at(page * 7 % 3000, 73) AS referer_hash,
    skewed(i, 79, 5000)::INTEGER AS send_timing,
    skewed(i, 83, 3000)::INTEGER AS dns_timing,
    skewed(i, 89, 20000)::INTEGER AS response_timing,
    (hash_at(user, 97) % 100)::SMALLINT AS age,
    (hash_at(user, 101) % 5)::SMALLINT AS income,
    (hash_at(user, 103) % 100000)::INTEGER AS interests,
    ['EUR', 'USD', 'CNY', 'INR', ''][1 + hash_at(user, 107) % 5] AS currency,
    CASE WHEN d < 0.97 THEN NULL ELSE (a * 50000)::DECIMAL(10, 2) END AS price,
    'campaign=' || hash_at(i, 109) % 300 || '&medium=' || ['mail', 'ad', 'web'][1 + hash_at(i, 113) % 3]
        AS params
FROM numbers;
