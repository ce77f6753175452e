"""What is doubtful in data: pure functions over records, and their findings in words."""
