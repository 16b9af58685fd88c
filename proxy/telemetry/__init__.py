"""What happened, told once: frozen events that become metrics and log lines. The rooms that tell know no library."""
