/* SPDX-License-Identifier: Apache-2.0 */
#include "settings.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FILE_BYTES 8192

enum kind { NUMBER, BOOLEAN, WORD, TEXT };

struct setting {
    const char *name;
    enum kind kind;
    void *value;        /* uint32_t of a NUMBER, int of a BOOLEAN and a WORD, char[PATH_BYTES] of a TEXT */
    uint32_t least;     /* of a NUMBER */
    uint32_t greatest;  /* of a NUMBER */
    const char *wanted; /* what the value has to be */
    const char *const *words;
    int is_given;
};

struct reader {
    const char *path;
    const char *at; /* a zero byte marks the end */
    const char *end;
    unsigned line;
};

static int wrong(const struct reader *reader, const char *what)
{
    fprintf(stderr, "error: %s, line %u: %s\n", reader->path, reader->line, what);
    return 1;
}

static int wrong_setting(const struct reader *reader, const struct setting *setting)
{
    fprintf(stderr, "error: %s, line %u: '%s' is %s\n", reader->path, reader->line, setting->name, setting->wanted);
    return 1;
}

static void skip_space(struct reader *reader)
{
    for (; *reader->at != '\0' && strchr(" \t\r\n", *reader->at) != 0; reader->at++) {
        reader->line += *reader->at == '\n';
    }
}

/* Takes the character when it is the next one. */
static int takes(struct reader *reader, char character)
{
    skip_space(reader);
    if (*reader->at != character || reader->at == reader->end) {
        return 0;
    }
    reader->at++;
    return 1;
}

/* Takes the word when it comes next and nothing is glued to it. */
static int takes_word(struct reader *reader, const char *word)
{
    const size_t length = strlen(word);
    skip_space(reader);
    if (strncmp(reader->at, word, length) != 0 || strchr(",} \t\r\n", reader->at[length]) == 0) {
        return 0;
    }
    reader->at += length;
    return 1;
}

static int read_text(struct reader *reader, char text[PATH_BYTES])
{
    size_t length = 0;
    for (; *reader->at != '"'; reader->at++) {
        if ((unsigned char)*reader->at < ' ') {
            return wrong(reader, "a text has no closing quote");
        }
        if (*reader->at == '\\') {
            reader->at++;
            if (strchr("\"\\/", *reader->at) == 0 || *reader->at == '\0') {
                return wrong(reader, "of the escapes in a text there are \\\" \\\\ and \\/ alone");
            }
        }
        if (length == PATH_BYTES - 1) {
            return wrong(reader, "a text is longer than 1,023 bytes");
        }
        text[length++] = *reader->at;
    }
    text[length] = '\0';
    reader->at++;
    return 0;
}

static int read_number(struct reader *reader, const struct setting *setting)
{
    const char *const start = reader->at;
    uint64_t number = 0;
    for (; *reader->at >= '0' && *reader->at <= '9'; reader->at++) {
        if (number <= setting->greatest) { /* beyond it one digit more changes nothing */
            number = number * 10 + (uint64_t)(*reader->at - '0');
        }
    }
    const size_t digits = (size_t)(reader->at - start);
    const int is_whole = digits > 0 && (digits == 1 || *start != '0') && strchr(",} \t\r\n", *reader->at) != 0;
    if (!is_whole || number < setting->least || number > setting->greatest) {
        return wrong_setting(reader, setting);
    }
    *(uint32_t *)setting->value = (uint32_t)number;
    return 0;
}

static int read_value(struct reader *reader, const struct setting *setting)
{
    char text[PATH_BYTES];
    skip_space(reader);
    if (setting->kind == NUMBER) {
        return read_number(reader, setting);
    }
    if (setting->kind == BOOLEAN) {
        int *const value = setting->value;
        *value = takes_word(reader, "true");
        return *value || takes_word(reader, "false") ? 0 : wrong_setting(reader, setting);
    }
    if (!takes(reader, '"')) {
        return wrong_setting(reader, setting);
    }
    if (setting->kind == TEXT) {
        return read_text(reader, setting->value);
    }
    if (read_text(reader, text) != 0) {
        return 1;
    }
    for (int i = 0; setting->words[i] != 0; i++) {
        if (strcmp(text, setting->words[i]) == 0) {
            *(int *)setting->value = i;
            return 0;
        }
    }
    return wrong_setting(reader, setting);
}

/* "name": value */
static int read_setting(struct reader *reader, struct setting *settings)
{
    char name[PATH_BYTES];
    if (!takes(reader, '"')) {
        return wrong(reader, "the name of a setting is missing, in quotes");
    }
    if (read_text(reader, name) != 0) {
        return 1;
    }
    struct setting *setting = settings;
    while (setting->name != 0 && strcmp(setting->name, name) != 0) {
        setting++;
    }
    if (setting->name == 0) {
        fprintf(stderr, "error: %s, line %u: no setting '%s'; have:", reader->path, reader->line, name);
        for (setting = settings; setting->name != 0; setting++) {
            fprintf(stderr, "%s %s", setting == settings ? "" : ",", setting->name);
        }
        fputc('\n', stderr);
        return 1;
    }
    if (setting->is_given) {
        fprintf(stderr, "error: %s, line %u: '%s' is there twice\n", reader->path, reader->line, name);
        return 1;
    }
    setting->is_given = 1;
    if (!takes(reader, ':')) {
        return wrong(reader, "a colon is missing behind the name of a setting");
    }
    return read_value(reader, setting);
}

static int read_object(struct reader *reader, struct setting *settings)
{
    if (!takes(reader, '{')) {
        return wrong(reader, "the settings are one object, in braces");
    }
    if (!takes(reader, '}')) {
        do {
            if (read_setting(reader, settings) != 0) {
                return 1;
            }
        } while (takes(reader, ','));
        if (!takes(reader, '}')) {
            return wrong(reader, "a comma or the closing brace is missing");
        }
    }
    skip_space(reader);
    return reader->at == reader->end ? 0 : wrong(reader, "something follows the closing brace");
}

int settings_read(const char *path, struct settings *settings)
{
    static const char *const SAFE_ACTIONS[] = {"zeros", "hold", 0};
    static const char *const LOG_LEVELS[] = {"error", "warn", "info", "debug", 0};
    static char file[FILE_BYTES + 1];
    struct loop_config *const config = &settings->config;
    struct setting table[] = {
        {"control_hz", NUMBER, &config->control_hz, 1, LOOP_MOST_CONTROL_HZ, "a whole number from 1 to 1000000", 0, 0},
        {"ticks", NUMBER, &config->ticks, 0, UINT32_MAX, "a whole number from 0 to 4294967295", 0, 0},
        {"batch", BOOLEAN, &config->batch, 0, 0, "true or false", 0, 0},
        {"safe_action", WORD, &config->safe_action, 0, 0, "\"zeros\" or \"hold\"", SAFE_ACTIONS, 0},
        {"log_level", WORD, &loop_log_level, 0, 0, "\"error\", \"warn\", \"info\" or \"debug\"", LOG_LEVELS, 0},
        {"observations", TEXT, settings->observations, 0, 0, "a path in quotes", 0, 0},
        {"actions", TEXT, settings->actions, 0, 0, "a path in quotes", 0, 0},
        {0, TEXT, 0, 0, 0, 0, 0, 0},
    };
    FILE *const stream = fopen(path, "rb");
    if (stream == 0) {
        fprintf(stderr, "error: cannot read '%s': %s\n", path, strerror(errno));
        return 1;
    }
    const size_t size = fread(file, 1, sizeof file, stream);
    const int failed = ferror(stream);
    fclose(stream);
    if (failed || size > FILE_BYTES) {
        fprintf(stderr, "error: '%s' %s\n", path, failed ? "cannot be read" : "is longer than 8,192 bytes");
        return 1;
    }
    file[size] = '\0';
    struct reader reader = {path, file, file + size, 1};
    return read_object(&reader, table);
}
