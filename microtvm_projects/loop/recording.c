/* SPDX-License-Identifier: Apache-2.0 */
#include "recording.h"

#include "console.h"
#include "decimal.h"
#include "loop.h"

#define CELL_BYTES 48 /* longer than a number needs to be */

static const char *name;
static uint32_t line;

/* Says where; what is wrong follows. */
static void say_place(void)
{
    console_text("error: ");
    console_text(name);
    console_text(", line ");
    console_unsigned(line);
    console_text(": ");
}

static int is_blank(int byte)
{
    return byte == ' ' || byte == '\t' || byte == '\r';
}

/* Returns what ended the cell: a comma, a line's end, or -1. */
static int read_cell(char cell[CELL_BYTES])
{
    uint32_t length = 0;
    int byte = recording_byte();
    for (; byte != ',' && byte != '\n' && byte != -1; byte = recording_byte()) {
        if (length == 0 && is_blank(byte)) {
            continue;
        }
        if (length < CELL_BYTES - 1) {
            cell[length++] = (char)(byte == '\0' ? '?' : byte);
        } else {
            cell[length - 1] = cell[length - 2] = '.'; /* two dots are in no number */
        }
    }
    while (length > 0 && is_blank(cell[length - 1])) {
        length--;
    }
    cell[length] = '\0';
    return byte;
}

static int begins_a_name(char character)
{
    return (character >= 'a' && character <= 'z') || (character >= 'A' && character <= 'Z') || character == '_'
           || character == '"';
}

static int read_row(float observation[N_OBS])
{
    char cell[CELL_BYTES];
    for (;;) {
        uint32_t cells = 0;
        int end, is_header = 0;
        line++;
        do {
            float number = 0.0f;
            end = read_cell(cell);
            if (cells == 0 && cell[0] == '\0' && end != ',') {
                break; /* an empty line */
            }
            if (!is_header && !decimal_to_float(cell, &number)) {
                is_header = line == 1 && cells == 0 && begins_a_name(cell[0]);
                if (!is_header) {
                    say_place();
                    console_text("'");
                    console_text(cell);
                    console_text("' is no number\n");
                    return LOOP_BROKEN;
                }
            }
            if (cells < N_OBS) {
                observation[cells] = number;
            }
            cells++;
        } while (end == ',');
        if (cells != 0 && cells != N_OBS) {
            say_place();
            console_unsigned(cells);
            console_text(cells == 1 ? " column" : " columns");
            console_text(", an observation has ");
            console_unsigned(N_OBS);
            console_text("\n");
            return LOOP_BROKEN;
        }
        if (cells != 0 && !is_header) {
            return LOOP_OBSERVED;
        }
        if (end == -1) {
            return LOOP_END;
        }
    }
}

static int read_vector(float observation[N_OBS])
{
    static uint32_t row;
    if (row == N_VECTORS) {
        return LOOP_END;
    }
    for (uint32_t i = 0; i < N_OBS; i++) {
        observation[i] = test_observations[row][i];
    }
    row++;
    return LOOP_OBSERVED;
}

int recording_read(float observation[N_OBS])
{
    static uint32_t rows;
    if (rows == 0) {
        name = recording_open();
    }
    const int sensed = name != 0 ? read_row(observation) : read_vector(observation);
    if (sensed == LOOP_END && rows == 0) {
        say_place();
        console_text("the file ends without an observation\n");
        return LOOP_BROKEN;
    }
    rows++;
    return sensed;
}
