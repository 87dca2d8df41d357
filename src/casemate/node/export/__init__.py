"""What is counted and seen, in the forms that other systems read: Prometheus' text, OpenTelemetry's JSON."""
