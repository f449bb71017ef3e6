"""What is stored where: object store and Parquet, Postgres schema and stores. One transaction per write."""
