"""Everything of Sojourn on one machine: PostgreSQL, NATS, the services, the gateway and an agent, under one command."""
