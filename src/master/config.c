/* SPDX-License-Identifier: MIT */
/* SPDX-FileCopyrightText: the up-master authors */
#include "master/config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "master/config-file.h"
#include "master/option.h"

/* ---- The command line ---- */

struct setting {
	const struct option *option;
	const char *value;
};

struct command_line {
	int argc, at; /* at: the argument to be read next */
	char **argv;
	struct setting *settings; /* room for one per argument */
	unsigned n_settings;
	enum config_outcome outcome;
	char action;	   /* what was asked for instead of running: h, V or 0 */
	bool after_dashes; /* the application came after -- */
};

static void command_line_close(struct command_line *line)
{
	free(line->settings);
}

/* Every message about the command line ends here. */
static int refuse_usage(char **out_error, const char *subject, const char *why)
{
	return option_refuse(
		out_error, "%s: %s; see up-master --help", subject, why ? why : "out of memory");
}

static int refuse_option(char **out_error, const struct option *option, const char *why)
{
	OPTION_TEXT_AUTO char *subject = NULL;

	option_refuse(&subject, "--%s", option->name);
	return refuse_usage(out_error, subject ? subject : option->name, why);
}

static int refuse_unknown(char **out_error, const char *argument, size_t len)
{
	OPTION_TEXT_AUTO char *name = strndup(argument, len);
	OPTION_TEXT_AUTO char *why = NULL;
	const struct option *nearest = NULL;

	if (!name)
		return option_refuse(out_error, "out of memory");
	if (strncmp(name, "--", 2) == 0)
		nearest = option_nearest(name + 2, OPTION_COMMAND_LINE);
	if (nearest)
		option_refuse(&why, "unknown option; did you mean --%s?", nearest->name);
	return option_refuse(out_error, "%s: %s%s see up-master --help", name,
		why ? why : "unknown option", why ? "" : ";");
}

static void take_action(struct command_line *line, const struct option *option)
{
	if (strcmp(option->name, "check-config") == 0)
		line->outcome = CONFIG_CHECK;
	else
		line->action = option->letter;
}

/* The value of an option that has none attached. NULL where it needs one and there is none. */
static const char *next_value(struct command_line *line, const struct option *option)
{
	const char *next = line->at < line->argc ? line->argv[line->at] : NULL;
	bool is_bool = option->kind == OPTION_BOOL || option->kind == OPTION_FLAG;

	/* A flag leaves the next argument alone: it may be a command called true. */
	if (is_bool && (option->kind == OPTION_FLAG || !next || !option_is_bool(next)))
		return "true";
	if (next)
		line->at++;
	return next;
}

/* attached: the value in the same argument, or NULL. */
static int take_option(struct command_line *line, const struct option *option, const char *attached,
	char **out_error)
{
	const char *value = attached;

	if (option->kind == OPTION_ACTION) {
		if (attached)
			return refuse_option(out_error, option, "takes no value");
		take_action(line, option);
		return 0;
	}
	if (!value)
		value = next_value(line, option);
	if (!value)
		return refuse_option(out_error, option, "needs a value");
	line->settings[line->n_settings++] = (struct setting){ option, value };
	return 0;
}

static int take_long(struct command_line *line, const char *argument, char **out_error)
{
	const char *name = argument + 2;
	size_t len = strcspn(name, "=");
	const struct option *option = option_by_name(name, len);

	if (!option)
		return refuse_unknown(out_error, argument, len + 2);
	return take_option(line, option, name[len] ? name + len + 1 : NULL, out_error);
}

static int take_short(struct command_line *line, const char *argument, char **out_error)
{
	const struct option *option = option_by_letter(argument[1]);
	const char *rest = argument[2] ? argument + 2 : NULL;

	if (!option)
		return refuse_unknown(out_error, argument, 2);
	return take_option(line, option, rest, out_error);
}

/* Options end at the first argument that is none: what follows belongs to the application. */
static int command_line_read(struct command_line *line, char **out_error)
{
	int r = 0;

	line->settings = calloc((size_t)line->argc + 1, sizeof(*line->settings));
	if (!line->settings)
		return option_refuse(out_error, "out of memory");
	while (r == 0 && line->at < line->argc && line->action == 0) {
		const char *argument = line->argv[line->at];

		if (argument[0] != '-' || argument[1] == '\0')
			break;
		line->at++;
		line->after_dashes = strcmp(argument, "--") == 0;
		if (line->after_dashes)
			break;
		r = argument[1] == '-' ? take_long(line, argument, out_error)
				       : take_short(line, argument, out_error);
	}
	return r;
}

static bool names_app(const struct command_line *line)
{
	return line->at < line->argc || line->after_dashes;
}

/* ---- Merging: the defaults, then the file, then the command line ---- */

static bool is_config_file(const struct option *option)
{
	return strcmp(option->name, "config") == 0;
}

/* The command line's list takes the place of the file's. */
static void clear_lists(const struct command_line *line, struct config *config)
{
	for (unsigned i = 0; i < line->n_settings; i++) {
		const struct option *option = line->settings[i].option;

		if (option->kind == OPTION_LIST || option->kind == OPTION_PORT)
			option_clear(option, config);
	}
}

/* --config alone, or all others: the file comes between them. */
static int apply_settings(
	const struct command_line *line, bool config_file, struct config *config, char **out_error)
{
	for (unsigned i = 0; i < line->n_settings; i++) {
		const struct setting *setting = &line->settings[i];
		OPTION_TEXT_AUTO char *why = NULL;

		if (is_config_file(setting->option) == config_file &&
			option_set_text(setting->option, config, setting->value, &why) < 0)
			return refuse_option(out_error, setting->option, why);
	}
	return 0;
}

/* An application on the command line stands alone: whether it is native is said there too. */
static int apply_app(const struct command_line *line, struct config *config, char **out_error)
{
	const struct option *app = option_by_key("app");

	option_clear(app, config);
	config->native = false;
	for (int i = line->at; i < line->argc; i++)
		if (option_set_text(app, config, line->argv[i], out_error) < 0)
			return -EINVAL;
	return 0;
}

/* ---- What the application is ---- */

static bool ends_with(const char *text, const char *end)
{
	size_t len = strlen(text), end_len = strlen(end);

	return len > end_len && strcmp(text + len - end_len, end) == 0;
}

static int resolve_module(struct config *config, char **out_why)
{
	const char *name = config->app.at[0];
	char *path;

	config->app_kind = CONFIG_APP_MODULE;
	if (strchr(name, '/'))
		return 0;
	/* A path here as in any other option; dlopen(3) would search for a bare name elsewhere. */
	if (asprintf(&path, "./%s", name) < 0)
		return option_refuse(out_why, "out of memory");
	free(config->app.at[0]);
	config->app.at[0] = path;
	return 0;
}

static int refuse_app(const char *name, char **out_why)
{
	static const char served[] = "this version serves C modules (NAME.so)"
				     " and native programs (--native -- COMMAND)";

	if (ends_with(name, ".js") || ends_with(name, ".cjs") || ends_with(name, ".mjs"))
		return option_refuse(out_why, "\"%s\" is a Node module: %s", name, served);
	return option_refuse(out_why, "\"%s\" is not a C module: %s", name, served);
}

static int resolve_app(struct config *config, bool is_command, char **out_why)
{
	const struct config_strings *app = &config->app;

	if (app->n > 0 && app->at[0][0] == '\0')
		return option_refuse(out_why, "the application's name is empty");
	if (app->n == 0 && (config->native || is_command))
		return option_refuse(out_why, "no command is named");
	if (config->native) {
		config->app_kind = CONFIG_APP_NATIVE;
		return 0;
	}
	config->app_kind = CONFIG_APP_HELLO;
	if (app->n == 0)
		return 0;
	if (is_command || !ends_with(app->at[0], ".so"))
		return refuse_app(app->at[0], out_why);
	return resolve_module(config, out_why);
}

/* Says where the application, or the wish for one, came from. */
static int finish_app(const struct command_line *line, const struct config_file *file,
	struct config *config, char **out_error)
{
	OPTION_TEXT_AUTO char *why = NULL;

	if (resolve_app(config, line->after_dashes, &why) == 0)
		return 0;
	if (!names_app(line) && file->root && json_object_get(file->root, "app"))
		return config_file_refuse(file, "app", why ? why : "out of memory", out_error);
	if (!names_app(line) && file->root && json_object_get(file->root, "native"))
		return config_file_refuse(file, "native", why ? why : "out of memory", out_error);
	if (config->native && config->app.n == 0)
		return refuse_usage(out_error, "--native", why);
	return refuse_usage(out_error, line->after_dashes ? "--" : "application", why);
}

/* ---- Loading ---- */

static int fill_from_file(struct config_file *file, struct config *config, char **out_error)
{
	int r = config_file_open(file, config->config_file, out_error);

	return r < 0 ? r : config_file_apply(file, config, out_error);
}

static int fill(const struct command_line *line, struct config_file *file, struct config *config,
	char **out_error)
{
	int r = option_set_presets(config, out_error);

	if (r == 0)
		r = apply_settings(line, true, config, out_error);
	if (r == 0 && config->config_file)
		r = fill_from_file(file, config, out_error);
	if (r == 0 && names_app(line))
		r = apply_app(line, config, out_error);
	clear_lists(line, config);
	if (r == 0)
		r = apply_settings(line, false, config, out_error);
	return r < 0 ? r : finish_app(line, file, config, out_error);
}

static int make(const struct command_line *line, struct config **out, char **out_error)
{
	struct config *config = calloc(1, sizeof(*config));
	struct config_file file = { 0 };
	int r;

	if (!config)
		return option_refuse(out_error, "out of memory");
	config->n_references = 1;
	r = fill(line, &file, config, out_error);
	config_file_close(&file);
	if (r < 0)
		config_unref(config);
	else
		*out = config;
	return r;
}

static int print_and_exit(char action)
{
	if (action == 'h')
		option_print_help(stdout);
	else
		printf("up-master %s\n", UP_VERSION);
	fflush(stdout);
	return CONFIG_EXIT;
}

int config_load(int argc, char *argv[], struct config **out, char **out_error)
{
	__attribute__((cleanup(command_line_close))) struct command_line line = {
		.argc = argc,
		.at = 1,
		.argv = argv,
		.outcome = CONFIG_RUN,
	};
	int r;

	*out_error = NULL;
	r = command_line_read(&line, out_error);
	if (r < 0)
		return r;
	if (line.action)
		return print_and_exit(line.action);
	r = make(&line, out, out_error);
	return r < 0 ? r : (int)line.outcome;
}

struct config *config_ref(struct config *config)
{
	config->n_references++;
	return config;
}

struct config *config_unref(struct config *config)
{
	if (!config)
		return NULL;
	assert(config->n_references > 0);
	if (--config->n_references > 0)
		return NULL;
	for (const struct option *o = option_first(); o; o = option_next(o))
		option_clear(o, config);
	free(config);
	return NULL;
}

json_t *config_dump(const struct config *config)
{
	json_t *root = json_object();

	for (const struct option *o = option_first(); root && o; o = option_next(o)) {
		OPTION_TEXT_AUTO char *key = option_key(o);

		/* Ports are elements of listen by now. */
		if (o->place == OPTION_COMMAND_LINE || o->kind == OPTION_PORT)
			continue;
		if (!key || json_object_set_new(root, key, option_get_json(o, config)) < 0) {
			json_decref(root);
			root = NULL;
		}
	}
	return root;
}
