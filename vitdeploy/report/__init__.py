"""What people read: tables on the console, report.md."""
