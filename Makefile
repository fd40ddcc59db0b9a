# Every command of the platform. `make help` lists them; each one sets up what it needs first.
# Variables: CRM_ENV and CRM_HOME as in the README; the rest stands beside its target.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PY := $(BIN)/python
LOCAL := $(PY) -m deploy.local
READY := .venv/.ready

# So many processes of tests, each with a stack of its own (`tests/conftest.py` says what runs in which). JOBS=1: one after the other.
JOBS ?= 2
SIDE_BY_SIDE = $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist loadscope --no-loadscope-reorder)

# The clock of `make demo` starts before anything is set up.
export CRM_DEMO_STARTED := $(shell date +%s)
export UV_PYTHON_DOWNLOADS := never

.PHONY: help setup up down status logs psql doctor clean demo send replay backfill scenario audit test test-unit test-integration lint contracts \
	marts-page dbt-docs audiences audience-export dead-letters replay-dead-letters time-travel dbt-manifest jars jars-lock bench-audit bench-drain bench-backfill bench-stream bench-marts bench-freshness faults-stream \
	planted-faults test-suite judge-population judge-models fit-models evaluate-models bench-generator bench-rates validate

help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): uv.lock pyproject.toml deploy/local/setup.sh
	@PYTHON="$(PYTHON)" deploy/local/setup.sh
	@touch $@

setup: $(READY) ## Install what uv.lock says into .venv (PYTHON=… chooses the interpreter)

# -- the stack ---------------------------------------------------------------------------------------------------------

up: $(READY) ## Start Kafka, PostgreSQL and Dagster; twice is a no-op (LAKE=minio puts a new data set's lake on MinIO)
	@$(LOCAL) up $(if $(LAKE),--lake "$(LAKE)") $(ARGS)

down: $(READY) ## Stop everything in order; nothing is lost
	@$(LOCAL) down $(ARGS)

status: $(READY) ## State, memory and restarts of each service; last log lines of what failed
	@$(LOCAL) status

logs: $(READY) ## Follow the log of SERVICE=kafka|postgres|minio|code-server|webserver|daemon|stream, or of all
	@$(LOCAL) logs $(SERVICE) --follow

psql: $(READY) ## A prompt on the data set's database (ARGS="-c 'select 1'")
	@$(LOCAL) psql $(ARGS)

doctor: $(READY) ## Look at what this machine must have: Java, disk, whole jars
	@$(LOCAL) doctor

clean: $(READY) ## Stop everything and delete all data (YES=1)
	@$(LOCAL) clean $(if $(YES),--yes) $(ARGS)

# -- data --------------------------------------------------------------------------------------------------------------

demo: $(READY) ## Everything from an empty folder to audited marts (DATA=file replays it, SPEED=…, EXIT=1 stops at the end)
	@$(PY) -m deploy.local.demo $(if $(DATA),--data "$(DATA)") $(if $(SPEED),--speed "$(SPEED)") $(if $(LAKE),--lake "$(LAKE)") $(if $(EXIT),--exit) $(ARGS)

send: $(READY) ## Check a shop's own records against the contracts and send them (FILE=orders.jsonl)
	@test -n "$(FILE)" || { echo "error: name the file: make send FILE=orders.jsonl" >&2; exit 1; }
	@$(PY) -m generator send "$(FILE)" $(ARGS)

replay: $(READY) ## Replay an Online Retail file into its own data set (DATA=file.csv.gz, SPEED=…)
	@test -n "$(DATA)" || { echo "error: name the file: make replay DATA=online_retail.csv.gz" >&2; exit 1; }
	@$(PY) -m generator replay "$(DATA)" $(if $(SPEED),--speed "$(SPEED)") $(ARGS)

backfill: $(READY) ## A year of customers whose truth is known (ARGS="--customers 2000 --env history --into bronze")
	@$(PY) -m generator backfill $(ARGS)

scenario: $(READY) ## Run a load scenario (SCENARIO=normal|spike|soak|ladder or a file)
	@test -n "$(SCENARIO)" || { echo "error: name the scenario: make scenario SCENARIO=spike" >&2; exit 1; }
	@$(PY) -m generator run "$(SCENARIO)" $(ARGS)

audit: $(READY) ## Check the books of the data set: ledger, bronze, silver, dead letters, warehouse
	@$(PY) -m crm_assets.monitoring.audit $(ARGS)

dead-letters: $(READY) ## Open dead letters by reason: how many, since when, an example, what to do
	@$(PY) -m crm_assets.streaming.dead_letters_command list

replay-dead-letters: $(READY) ## Try open dead letters again (ARGS="--reason invalid_field --dry-run"; --no-dry-run does it)
	@$(PY) -m crm_assets.streaming.dead_letters_command replay $(ARGS)

time-travel: $(READY) ## The marts of an earlier point once more, compared with what was reported (AT=2026-11-20, REPORT=…, VERSIONS=…, LIST=1, KEEP=1)
	@$(PY) -m crm_assets.warehouse.time_travel_cli $(if $(AT),--at "$(AT)") $(if $(REPORT),--report "$(REPORT)") \
		$(if $(VERSIONS),--versions "$(VERSIONS)") $(if $(AS_OF),--as-of "$(AS_OF)") $(if $(KEEP),--keep) $(if $(LIST),--list) $(ARGS)

fit-models: $(READY) ## Fit the purchase models of the data set anew, judge them, promote by the rule
	@$(PY) -m crm_assets.warehouse.models refit

evaluate-models: $(READY) ## Judge the purchase models on a time split, against recency and frequency alone; a page with plots (ARGS="--as-of 2026-08-01")
	@$(PY) -m crm_assets.warehouse.models evaluate $(ARGS)

marts-page: $(READY) ## A page with plots: segments, movements, cohorts, how good the models are (ARGS="--folder docs/marts")
	@$(PY) -m crm_assets.warehouse.marts_page $(ARGS)

dbt-docs: $(READY) ## Documentation of all models, columns, tests and their lineage, as one HTML page
	@$(PY) -m crm_assets.warehouse.dbt_docs

audiences: $(READY) ## The declared audiences: conditions, members, last change, last export
	@$(PY) -m crm_assets.warehouse.audiences list

audience-export: $(READY) ## Send joins and leaves (TO=csv|webhook, IDENTITY=pseudonym|email-hash, AUDIENCE=…, FOLDER=…)
	@$(PY) -m crm_assets.warehouse.audiences export $(if $(TO),--to "$(TO)") $(if $(IDENTITY),--identity "$(IDENTITY)") \
		$(if $(AUDIENCE),--audience "$(AUDIENCE)") $(if $(FOLDER),--folder "$(FOLDER)") $(ARGS)

# -- checks ------------------------------------------------------------------------------------------------------------

lint: $(READY) ## Style, types, directions of imports, SQL
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint --disable-progress-bar dbt
	$(PY) -m crm_assets.warehouse.layer_rules

test: lint ## Lint, then all tests; the integration tests start the real stack themselves (JOBS=1: not two at a time)
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)

test-unit: $(READY) ## Tests that need no service
	$(BIN)/pytest tests/unit $(ARGS)

test-integration: $(READY) ## Tests against the real stack
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/integration $(ARGS)

planted-faults: $(READY) ## Plant 35 one-line faults; the tests must catch each (ARGS="--only audit")
	@$(PY) -m tests.planted_faults $(ARGS)

test-suite: $(READY) ## All tests, then the planted faults, and one report of both
	@$(PY) -m tests.suite_report

validate: $(READY) ## Load the code location with every service down
	@$(BIN)/dagster definitions validate -w workspace.yaml

contracts: $(READY) ## Write anew what is derived from contracts, settings and audiences: schemas, sources, the dbt manifest, the README's table
	$(PY) -m crm_resources.contracts.derive_files
	$(PY) -m crm_resources.settings_docs
	$(PY) -m crm_assets.warehouse.audiences write
	$(PY) -m crm_assets.warehouse.manifest

dbt-manifest: $(READY) ## Write the dbt manifest anew, in normalised form
	$(PY) -m crm_assets.warehouse.manifest

bench-audit: $(READY) ## Measure the audit's time and memory on tables made for it (ARGS="--events 50000000")
	@$(PY) -m tests.benchmarks.bench_audit $(ARGS)

bench-drain: $(READY) ## Measure the way from Kafka to silver (takes a while)
	@$(PY) -m tests.benchmarks.bench_drain $(ARGS)

bench-stream: $(READY) ## Measure latency at held rates, and the largest rate the stream sustains (ARGS="--seconds 20 --rates 50")
	@$(PY) -m tests.benchmarks.bench_stream $(ARGS)

bench-marts: $(READY) ## Measure refreshes of the marts as the history grows, and scoring as the customers do (ARGS="--sizes 100000,500000")
	@$(PY) -m tests.benchmarks.bench_marts $(ARGS)

bench-freshness: $(READY) ## Measure how old the marts are while events come in and nobody clicks (ARGS="--rate 50 --seconds 300")
	@$(PY) -m tests.benchmarks.bench_freshness $(ARGS)

faults-stream: $(READY) ## Throw faults at the stream; the audit judges, and each control must fail (ARGS="--only F9 --kills 3")
	@$(PY) -m tests.faults $(ARGS)

bench-backfill: $(READY) ## Measure a year's way into bronze without Kafka, and on to silver
	@$(PY) -m tests.benchmarks.bench_backfill $(ARGS)

judge-population: $(READY) ## Judge the made-up customers by likelihood against their own truth, with controls that must fail
	@$(PY) -m tests.statistics.judgement $(ARGS)

judge-models: $(READY) ## Judge the purchase models by made-up customers whose truth is known, and by the real file where it is there
	@$(PY) -m tests.statistics.models_judgement $(ARGS)

bench-generator: $(READY) ## Measure how fast one process makes and sends events, beside plain Faker code and the bare producer
	@$(PY) -m tests.benchmarks.bench_generator $(ARGS)

bench-rates: $(READY) ## Measure whether scenarios keep their rates, 10 to 10,000 a second, and how late records are (ARGS="--seconds 10")
	@$(PY) -m tests.benchmarks.bench_rates $(ARGS)

jars: $(READY) ## Fetch the Java libraries of the lock file that are not there yet
	@$(LOCAL) jars

jars-lock: $(READY) ## Resolve the Java libraries anew and rewrite their lock file
	@$(LOCAL) jars --relock
