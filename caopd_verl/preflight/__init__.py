"""What is checked before Ray starts, as one table: `table.CHECKS`.

Training runs the table and then writes its files (`prepare`); `caopd doctor` runs it on a config
and reports every failure. A new check is a function in `checks/` and a row of the table.
"""
