# Every command of the platform. `make help` lists them by group; each one sets up what it needs first.
# A line `##@ …` begins a group. A target says what it does behind `##`, its variables in the lines with `##` below it.

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

# Every target that says what it does.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

$(READY): uv.lock pyproject.toml deploy/local/setup.sh
	@PYTHON="$(PYTHON)" deploy/local/setup.sh
	@touch $@

##@ Every day

demo: $(READY) ## Everything from an empty folder to audited marts
## DATA=file.csv.gz replays that file (SPEED=…)
## EXIT=1 stops every service at the end
	@$(PY) -m deploy.local.demo $(if $(DATA),--data "$(DATA)") $(if $(SPEED),--speed "$(SPEED)") $(if $(LAKE),--lake "$(LAKE)") $(if $(EXIT),--exit) $(ARGS)

up: $(READY) ## Start Kafka, PostgreSQL and Dagster; twice is harmless
## LAKE=minio puts the lake of a new data set on MinIO
	@$(LOCAL) up $(if $(LAKE),--lake "$(LAKE)") $(ARGS)

down: $(READY) ## Stop everything in order; nothing is lost
	@$(LOCAL) down $(ARGS)

status: $(READY) ## State, memory and restarts of each service
	@$(LOCAL) status

open: $(READY) ## Open the web UI in a browser, and print its address
	@$(LOCAL) open

logs: $(READY) ## Follow the log of one service, or of all
## SERVICE=kafka|postgres|minio|code-server|webserver|
##         daemon|stream
	@$(LOCAL) logs $(SERVICE) --follow

psql: $(READY) ## A prompt on the data set's database
## ARGS="-c 'select 1'"
	@$(LOCAL) psql $(ARGS)

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  \033[1m%-20s\033[0m %s\n", $$1, $$2} \
		/^## / {printf "  %-20s %s\n", "", substr($$0, 4)}' $(MAKEFILE_LIST)
	@printf '\nCRM_ENV names the data set (default: demo). More on each: docs/operations.md\n'

##@ Data

send: $(READY) ## Check a shop's own records and send them
## FILE=orders.jsonl
	@test -n "$(FILE)" || { echo "error: name the file: make send FILE=orders.jsonl" >&2; exit 1; }
	@$(PY) -m generator send "$(FILE)" $(ARGS)

replay: $(READY) ## Replay an Online Retail file into its own data set
## DATA=file.csv.gz, SPEED=…
	@test -n "$(DATA)" || { echo "error: name the file: make replay DATA=online_retail.csv.gz" >&2; exit 1; }
	@$(PY) -m generator replay "$(DATA)" $(if $(SPEED),--speed "$(SPEED)") $(ARGS)

backfill: $(READY) ## A year of customers whose true behaviour is known
## ARGS="--customers 2000 --env history --into bronze"
	@$(PY) -m generator backfill $(ARGS)

scenario: $(READY) ## Send load by a scenario, at its scheduled times
## SCENARIO=normal|spike|soak|ladder or a file
	@test -n "$(SCENARIO)" || { echo "error: name the scenario: make scenario SCENARIO=spike" >&2; exit 1; }
	@$(PY) -m generator run "$(SCENARIO)" $(ARGS)

audit: $(READY) ## Is anything lost, doubled or changed on its way?
	@$(PY) -m crm_assets.monitoring.audit $(ARGS)

dead-letters: $(READY) ## Refused records by reason, and what to do
	@$(PY) -m crm_assets.streaming.dead_letters_command list

replay-dead-letters: $(READY) ## Try refused records again
## ARGS="--reason invalid_field --no-dry-run"
	@$(PY) -m crm_assets.streaming.dead_letters_command replay $(ARGS)

time-travel: $(READY) ## Build the marts of an earlier date and compare them
## AT=2026-11-20, REPORT=…, VERSIONS=…, AS_OF=…
## LIST=1 shows what can be built, KEEP=1 keeps the result
	@$(PY) -m crm_assets.warehouse.time_travel_cli $(if $(AT),--at "$(AT)") $(if $(REPORT),--report "$(REPORT)") \
		$(if $(VERSIONS),--versions "$(VERSIONS)") $(if $(AS_OF),--as-of "$(AS_OF)") $(if $(KEEP),--keep) $(if $(LIST),--list) $(ARGS)

##@ Marketing

audiences: $(READY) ## The audiences: conditions, members, last export
	@$(PY) -m crm_assets.warehouse.audiences list

audience-export: $(READY) ## Send who joined and left since the last export
## TO=csv|webhook, IDENTITY=pseudonym|email-hash
## AUDIENCE=…, FOLDER=…
	@$(PY) -m crm_assets.warehouse.audiences export $(if $(TO),--to "$(TO)") $(if $(IDENTITY),--identity "$(IDENTITY)") \
		$(if $(AUDIENCE),--audience "$(AUDIENCE)") $(if $(FOLDER),--folder "$(FOLDER)") $(ARGS)

marts-page: $(READY) ## A page with plots: segments, cohorts, quality of models
## ARGS="--folder docs/marts"
	@$(PY) -m crm_assets.warehouse.marts_page $(ARGS)

fit-models: $(READY) ## Fit the purchase models now, as happens every night
	@$(PY) -m crm_assets.warehouse.models refit

evaluate-models: $(READY) ## How well do the purchase models predict? Page of plots
## ARGS="--as-of 2026-08-01"
	@$(PY) -m crm_assets.warehouse.models evaluate $(ARGS)

##@ Care

setup: $(READY) ## Install what uv.lock says into .venv
## PYTHON=… chooses the interpreter

doctor: $(READY) ## Does this machine have Java, disk and whole jars?
	@$(LOCAL) doctor

test: lint ## Lint, then all tests; the tests start a stack themselves
## JOBS=1: one process of tests instead of two
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)

test-unit: $(READY) ## Tests that need no service
	$(BIN)/pytest tests/unit $(ARGS)

test-integration: $(READY) ## Tests against the real stack
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/integration $(ARGS)

lint: $(READY) ## Style, types, directions of imports, SQL
	@$(MAKE) -j2 --output-sync=target lint-python lint-sql

lint-python: $(READY) ## The Python half of lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

lint-sql: $(READY) ## The SQL half of lint
	$(BIN)/sqlfluff lint --disable-progress-bar dbt
	$(PY) -m crm_assets.warehouse.layer_rules

validate: $(READY) ## Load the asset graph with every service down
	@$(BIN)/dagster definitions validate -w workspace.yaml

contracts: $(READY) ## Rewrite what derives from contracts and settings
## schemas, dbt sources and manifest, docs/settings.md
	$(PY) -m crm_resources.contracts.derive_files
	$(PY) -m crm_resources.settings_docs
	$(PY) -m crm_assets.warehouse.audiences write
	$(PY) -m crm_assets.warehouse.manifest

dbt-manifest: $(READY) ## Rewrite the dbt manifest alone
	$(PY) -m crm_assets.warehouse.manifest

dbt-docs: $(READY) ## Every model, column and test as one HTML page
	@$(PY) -m crm_assets.warehouse.dbt_docs

graph-picture: $(READY) ## Take the README's picture of the asset graph anew
	@$(PY) -m tests.browser.graph_picture $(ARGS)

figures: $(READY) ## Rewrite the tables of figures from the kept reports
	@$(PY) -m tests.benchmarks.figures_table

jars: $(READY) ## Fetch the Java libraries that are not there yet
	@$(LOCAL) jars

jars-lock: $(READY) ## Resolve the Java libraries anew, rewrite their lock file
	@$(LOCAL) jars --relock

clean: $(READY) ## Stop everything and delete all data
## YES=1 does it
	@$(LOCAL) clean $(if $(YES),--yes) $(ARGS)

##@ Measuring

demo-busy: $(READY) ## The demo beside busy loops that take the cores away
## LOOPS=12
	@$(PY) -m tests.benchmarks.demo_busy $(if $(LOOPS),--loops "$(LOOPS)") $(ARGS)

planted-faults: $(READY) ## Plant one-line faults; the tests must catch each
## ARGS="--only audit"
	@$(PY) -m tests.planted_faults $(ARGS)

test-suite: $(READY) ## All tests, then the planted faults, and one report
	@$(PY) -m tests.suite_report

faults-stream: $(READY) ## Kill, poison and confuse the stream, then audit
## ARGS="--only F9 --kills 3"
	@$(PY) -m tests.faults $(ARGS)

bench-stream: $(READY) ## Latency at held rates, and the largest rate sustained
## ARGS="--seconds 20 --rates 50"
	@$(PY) -m tests.benchmarks.bench_stream $(ARGS)

bench-freshness: $(READY) ## How old the marts are while events come in
## ARGS="--rate 50 --seconds 300"
	@$(PY) -m tests.benchmarks.bench_freshness $(ARGS)

bench-drain: $(READY) ## How fast waiting records get from Kafka to silver
	@$(PY) -m tests.benchmarks.bench_drain $(ARGS)

bench-marts: $(READY) ## Time of a refresh as history and customers grow
## ARGS="--sizes 100000,500000"
	@$(PY) -m tests.benchmarks.bench_marts $(ARGS)

bench-backfill: $(READY) ## A year's way into bronze without Kafka, and to silver
	@$(PY) -m tests.benchmarks.bench_backfill $(ARGS)

bench-audit: $(READY) ## Time and memory of the audit
## ARGS="--events 50000000"
	@$(PY) -m tests.benchmarks.bench_audit $(ARGS)

bench-generator: $(READY) ## How fast one process makes and sends events
	@$(PY) -m tests.benchmarks.bench_generator $(ARGS)

bench-rates: $(READY) ## Whether scenarios keep their rates
## ARGS="--seconds 10"
	@$(PY) -m tests.benchmarks.bench_rates $(ARGS)

judge-population: $(READY) ## Do made-up customers behave by their known model?
	@$(PY) -m tests.statistics.judgement $(ARGS)

judge-models: $(READY) ## How well models predict customers whose future is known
	@$(PY) -m tests.statistics.models_judgement $(ARGS)
