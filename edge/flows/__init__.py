"""What needs several verbs at once: each flow is a plain function over them, with progress by event objects."""
