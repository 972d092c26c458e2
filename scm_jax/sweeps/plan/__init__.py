"""From a sweep file to complete, checked and counted runs."""
