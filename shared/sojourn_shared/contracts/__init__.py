"""Every message that crosses a wire: `wire` between server and agents, `events` between services."""
