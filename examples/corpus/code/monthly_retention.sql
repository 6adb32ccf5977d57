-- How many customers come back? Cohort retention by month (SQLite dialect).
--
-- A customer belongs to the cohort of the month of the first order. For every
-- cohort the report tells how many of its members ordered again 0, 1, 2 ... months
-- later, and what share of the cohort that is.

CREATE TABLE IF NOT EXISTS orders (
    order_id    INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL,
    ordered_on  TEXT    NOT NULL,            -- ISO date, e.g. 2024-03-17
    total_cents INTEGER NOT NULL CHECK (total_cents >= 0)
);

CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer_id, ordered_on);

WITH numbered AS (
    -- Turn each date into a running number of months, so that differences are simple.
    SELECT
        customer_id,
        CAST(strftime('%Y', ordered_on) AS INTEGER) * 12
            + CAST(strftime('%m', ordered_on) AS INTEGER) - 1 AS month_number
    FROM orders
),
activity AS (
    -- One row per customer and month, however many orders there were. The window
    -- runs over the groups, so MIN looks at all the months of the customer.
    SELECT
        customer_id,
        month_number,
        MIN(month_number) OVER (PARTITION BY customer_id) AS cohort
    FROM numbered
    GROUP BY customer_id, month_number
),
cohort_size AS (
    SELECT cohort, COUNT(DISTINCT customer_id) AS customers
    FROM activity
    GROUP BY cohort
)
SELECT
    printf('%04d-%02d', a.cohort / 12, a.cohort % 12 + 1)  AS cohort_month,
    a.month_number - a.cohort                              AS months_later,
    COUNT(*)                                               AS active_customers,
    ROUND(100.0 * COUNT(*) / s.customers, 1)               AS percent_of_cohort
FROM activity AS a
JOIN cohort_size AS s ON s.cohort = a.cohort
GROUP BY a.cohort, months_later
ORDER BY a.cohort, months_later;
