# `sudo make run` and `sudo make test` do everything; see README.md. Each target is one script in packaging/.
.PHONY: help run test conformance prepare start stop check lock

help:
	@echo 'sudo make run     install what is missing, start the daemons, make an image, run a container'
	@echo 'sudo make test    the same preparation, then every test'
	@echo 'sudo make conformance   the one suite of all isolation levels, and its table'
	@echo 'sudo make start   the daemons alone'
	@echo 'sudo make stop    the daemons alone; containers go on'
	@echo 'make check        lint, types, layers, documents (after make test, which brings the tools)'
	@echo 'make lock         the locks in requirements/ anew'

run:
	@packaging/prepare run
	@packaging/start
	@packaging/demo

test:
	@packaging/prepare test
	@packaging/test $(TESTS)

conformance:
	@packaging/prepare test
	@packaging/test tests/conformance

prepare:
	@packaging/prepare run

start:
	@packaging/start

stop:
	@packaging/stop

check:
	@packaging/check

lock:
	@packaging/lock
