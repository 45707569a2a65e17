/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "ctl/table.h"

#include <stdbool.h>
#include <string.h>

#define CELL_MAX 48

void table_print_text(FILE *to, const char *text)
{
	for (; *text; text++) {
		unsigned char byte = (unsigned char)*text;

		putc((byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f ? '?' : byte,
			to);
	}
}

/* ---- Values as text, each into a cell ---- */

static const char *count_text(char *cell, const json_t *value)
{
	if (json_is_number(value))
		snprintf(cell, CELL_MAX, "%.0f", json_number_value(value));
	else
		strcpy(cell, "-");
	return cell;
}

static const char *string_text(const json_t *value)
{
	return json_is_string(value) ? json_string_value(value) : "-";
}

/* Two units at most: "12.3 s", "5m 3s", "3h 20m", "4d 1h". */
static const char *uptime_text(char *cell, const json_t *seconds)
{
	double s = json_number_value(seconds);
	unsigned long n = s > 0 ? (unsigned long)s : 0;

	if (!json_is_number(seconds))
		strcpy(cell, "-");
	else if (n < 60)
		snprintf(cell, CELL_MAX, "%.1f s", s);
	else if (n < 3600)
		snprintf(cell, CELL_MAX, "%lum %lus", n / 60, n % 60);
	else if (n < 86400)
		snprintf(cell, CELL_MAX, "%luh %lum", n / 3600, n / 60 % 60);
	else
		snprintf(cell, CELL_MAX, "%lud %luh", n / 86400, n / 3600 % 24);
	return cell;
}

static const char *latency_text(char *cell, const json_t *us)
{
	double value = json_number_value(us);

	if (!json_is_number(us))
		strcpy(cell, "-");
	else if (value < 1000)
		snprintf(cell, CELL_MAX, "%.0f us", value);
	else if (value < 1000000)
		snprintf(cell, CELL_MAX, "%.1f ms", value / 1000);
	else
		snprintf(cell, CELL_MAX, "%.1f s", value / 1000000);
	return cell;
}

static const char *memory_text(char *cell, const json_t *bytes)
{
	double value = json_number_value(bytes);

	if (!json_is_number(bytes))
		strcpy(cell, "-");
	else if (value < 1024.0 * 1024 * 1024)
		snprintf(cell, CELL_MAX, "%.1f MiB", value / (1024 * 1024));
	else
		snprintf(cell, CELL_MAX, "%.1f GiB", value / (1024.0 * 1024 * 1024));
	return cell;
}

/* ---- The lines above the workers ---- */

/* Prints "N name, N name": the fields of an object, under the names given to people. */
static void print_counts(FILE *to, const json_t *object, const char *const (*fields)[2], size_t n)
{
	char cell[CELL_MAX];

	for (size_t i = 0; i < n; i++)
		fprintf(to, "%s%s %s", i ? ", " : "",
			count_text(cell, json_object_get(object, fields[i][0])), fields[i][1]);
}

#define PRINT_COUNTS(to, object, fields)                                                           \
	print_counts(to, object, fields, sizeof(fields) / sizeof(*(fields)))

static void print_title(FILE *to, const json_t *status)
{
	char pid[CELL_MAX], generation[CELL_MAX], uptime[CELL_MAX];

	fputs("up-master ", to);
	table_print_text(to, string_text(json_object_get(status, "version")));
	fprintf(to, ", pid %s, ", count_text(pid, json_object_get(status, "pid")));
	table_print_text(to, string_text(json_object_get(status, "state")));
	fprintf(to, ", generation %s, up %s\n",
		count_text(generation, json_object_get(status, "generation")),
		uptime_text(uptime, json_object_get(status, "uptime_s")));
}

static void print_listeners(FILE *to, const json_t *listeners)
{
	const json_t *listener;
	size_t i;

	fputs("listeners    ", to);
	if (json_array_size(listeners) == 0)
		putc('-', to);
	json_array_foreach(listeners, i, listener)
	{
		fputs(i ? ", " : "", to);
		table_print_text(to, string_text(json_object_get(listener, "address")));
		if (json_is_true(json_object_get(listener, "inherited")))
			fputs(" (inherited)", to);
	}
	putc('\n', to);
}

static void print_connections(FILE *to, const json_t *connections)
{
	static const char *const open[][2] = { { "open", "open" } };
	static const char *const states[][2] = { { "reading", "reading" }, { "waiting", "waiting" },
		{ "lent", "lent" }, { "idle", "idle" }, { "upgraded", "upgraded" } };
	static const char *const sums[][2] = { { "accepted", "accepted" },
		{ "dropped", "dropped" } };

	fputs("connections  ", to);
	PRINT_COUNTS(to, connections, open);
	fputs(": ", to);
	PRINT_COUNTS(to, connections, states);
	fputs("; ", to);
	PRINT_COUNTS(to, connections, sums);
	putc('\n', to);
}

static void print_requests(FILE *to, const json_t *requests)
{
	static const char *const counts[][2] = { { "total", "total" }, { "in_flight", "in flight" },
		{ "queued", "queued" }, { "replayed", "replayed" }, { "refused", "refused" },
		{ "failed", "failed" } };
	const json_t *latency = json_object_get(requests, "latency_us");
	char p50[CELL_MAX], p99[CELL_MAX], p999[CELL_MAX], max[CELL_MAX];

	fputs("requests     ", to);
	PRINT_COUNTS(to, requests, counts);
	fprintf(to, "\nlatency      p50 %s, p99 %s, p99.9 %s, max %s\n",
		latency_text(p50, json_object_get(latency, "p50")),
		latency_text(p99, json_object_get(latency, "p99")),
		latency_text(p999, json_object_get(latency, "p999")),
		latency_text(max, json_object_get(latency, "max")));
}

static void print_last_reload(FILE *to, const json_t *last)
{
	char generation[CELL_MAX], duration[CELL_MAX];

	if (!json_is_object(last))
		return;
	count_text(generation, json_object_get(last, "generation"));
	if (json_is_true(json_object_get(last, "ok"))) {
		fprintf(to, "; last: generation %s, after %s ms", generation,
			count_text(duration, json_object_get(last, "duration_ms")));
		return;
	}
	fprintf(to, "; last: generation %s failed: ", generation);
	table_print_text(to, string_text(json_object_get(last, "error")));
}

static void print_reloads(FILE *to, const json_t *status)
{
	const json_t *reloads = json_object_get(status, "reloads");
	char count[CELL_MAX], failed[CELL_MAX], respawns[CELL_MAX];

	fprintf(to, "reloads      %s, %s failed",
		count_text(count, json_object_get(reloads, "count")),
		count_text(failed, json_object_get(reloads, "failed")));
	print_last_reload(to, json_object_get(reloads, "last"));
	fprintf(to, "\nrespawns     %s\n",
		count_text(respawns, json_object_get(status, "respawns")));
}

/* ---- The workers ---- */

enum column {
	COLUMN_ID,
	COLUMN_PID,
	COLUMN_APP_PID,
	COLUMN_GENERATION,
	COLUMN_STATE,
	COLUMN_UPTIME,
	COLUMN_REQUESTS,
	COLUMN_IN_FLIGHT,
	COLUMN_MEMORY,
	N_COLUMNS,
};

struct row {
	char cells[N_COLUMNS][CELL_MAX];
};

static const struct row headings = { { "ID", "PID", "APP PID", "GENERATION", "STATE", "UPTIME",
	"REQUESTS", "IN FLIGHT", "MEMORY" } };

static void row_fill(struct row *row, const json_t *worker)
{
	count_text(row->cells[COLUMN_ID], json_object_get(worker, "id"));
	count_text(row->cells[COLUMN_PID], json_object_get(worker, "pid"));
	count_text(row->cells[COLUMN_APP_PID], json_object_get(worker, "app_pid"));
	count_text(row->cells[COLUMN_GENERATION], json_object_get(worker, "generation"));
	snprintf(row->cells[COLUMN_STATE], CELL_MAX, "%s",
		string_text(json_object_get(worker, "state")));
	uptime_text(row->cells[COLUMN_UPTIME], json_object_get(worker, "uptime_s"));
	count_text(row->cells[COLUMN_REQUESTS], json_object_get(worker, "requests"));
	count_text(row->cells[COLUMN_IN_FLIGHT], json_object_get(worker, "in_flight"));
	memory_text(row->cells[COLUMN_MEMORY], json_object_get(worker, "rss_bytes"));
}

/* A width of 0 leaves the column out. Numbers stand at the right. */
static void row_print(FILE *to, const struct row *row, const int *widths)
{
	const char *gap = "";

	for (int i = 0; i < N_COLUMNS; i++) {
		if (widths[i] == 0)
			continue;
		fputs(gap, to);
		for (int n = (int)strlen(row->cells[i]); i != COLUMN_STATE && n < widths[i]; n++)
			putc(' ', to);
		table_print_text(to, row->cells[i]);
		for (int n = (int)strlen(row->cells[i]); i == COLUMN_STATE && n < widths[i]; n++)
			putc(' ', to);
		gap = "  ";
	}
	putc('\n', to);
}

static void widen(int *widths, const struct row *row)
{
	for (int i = 0; i < N_COLUMNS; i++) {
		int len = (int)strlen(row->cells[i]);

		if (len > widths[i])
			widths[i] = len;
	}
}

static void print_workers(FILE *to, const json_t *workers)
{
	int widths[N_COLUMNS] = { 0 };
	bool has_children = false;
	const json_t *worker;
	struct row row;
	size_t i;

	widen(widths, &headings);
	json_array_foreach(workers, i, worker)
	{
		row_fill(&row, worker);
		widen(widths, &row);
		has_children = has_children || json_is_number(json_object_get(worker, "app_pid"));
	}
	/* Most applications run in the worker itself, and have no process of their own. */
	if (!has_children)
		widths[COLUMN_APP_PID] = 0;
	row_print(to, &headings, widths);
	json_array_foreach(workers, i, worker)
	{
		row_fill(&row, worker);
		row_print(to, &row, widths);
	}
}

void table_print(FILE *to, const json_t *status)
{
	print_title(to, status);
	print_listeners(to, json_object_get(status, "listeners"));
	print_connections(to, json_object_get(status, "connections"));
	print_requests(to, json_object_get(status, "requests"));
	print_reloads(to, status);
	putc('\n', to);
	print_workers(to, json_object_get(status, "workers"));
}
