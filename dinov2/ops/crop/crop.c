/* From the resized 8-bit crop to what the model gets: colour jitter in any order, grey, blur, solarisation, normalisation.
 *
 * Planes of float are gone through as few times as the operations allow: only contrast, which needs the mean of what
 * came before it, ends a pass. The formulas are those of dinov2/data/image_ops.py and blur.py.
 */
#include "vector.h"

enum operation { BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE };

struct crop {
    int64_t size;             /* side */
    int64_t steps;            /* of colour */
    const int32_t *operation; /* (steps) */
    const float *factor;      /* (steps) */
    int64_t taps;             /* of the blur, odd; 0: none */
    const float *weight;      /* (taps) */
    int64_t solarize;
    const float *mean, *deviation; /* (3) */
    const uint8_t *pixels;    /* (3, size, size) */
    float *planes;            /* (3, size, size); may be `out` where there is no blur */
    float *row;               /* (size + taps) */
    float *out;               /* (3, size, size) */
};

typedef uint8_t bvec __attribute__((vector_size(LANES)));

INLINE vec smaller(vec a, vec b) { return choose(a < b, a, b); }
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec clamp01(vec x) { return smaller(larger(x, splat(0.0f)), splat(1.0f)); }
INLINE vec luma(const vec *c) { return c[0] * 0.2989f + c[1] * 0.587f + c[2] * 0.114f; }

INLINE vec load_bytes(const uint8_t *from, int count) {
    bvec bytes = {0};
    if (count == LANES)
        memcpy(&bytes, from, sizeof bytes);
    else
        memcpy(&bytes, from, count);
    return __builtin_convertvector(bytes, vec) * (1.0f / 255);
}

/* The distance around the circle of hues (in turns) to the hue of each channel says how much chroma it loses. */
INLINE void turn_hue(vec *c, float shift) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vec value = larger(larger(c[0], c[1]), c[2]);
    vec chroma = value - smaller(smaller(c[0], c[1]), c[2]);
    vec hue = choose(value == c[1], c[2] - c[0] + chroma * 2.0f, c[0] - c[1] + chroma * 4.0f);
    hue = choose(value == c[0], c[1] - c[2], hue);
    hue = hue / (larger(chroma, splat(1e-12f)) * 6.0f) + shift;
    for (int k = 0; k < 3; k++) {
        vec turn = hue - k / 3.0f;
        turn = turn - ((turn + magic) - magic);
        vec loss = larger(turn, -turn) - 1.0f / 6;
        loss = smaller(larger(loss, splat(0.0f)), splat(1.0f / 6));
        c[k] = value - loss * chroma * 6.0f;
    }
}

INLINE void apply(vec *c, int32_t operation, float factor, float mean) {
    if (operation == HUE) {
        turn_hue(c, factor);
        return;
    }
    if (operation == GRAYSCALE) {
        c[0] = c[1] = c[2] = luma(c);
        return;
    }
    vec other = splat(0.0f);
    if (operation == CONTRAST)
        other = splat((1 - factor) * mean);
    else if (operation == SATURATION)
        other = luma(c) * (1 - factor);
    for (int k = 0; k < 3; k++)
        c[k] = clamp01(c[k] * factor + other);
}

/* One pass: steps first .. last - 1 on every pixel, from the bytes or from the planes. Returns the sum of the grey. */
static double pass(const struct crop *p, int from_bytes, int64_t first, int64_t last, float mean) {
    const int64_t count = p->size * p->size;
    double total = 0;
    for (int64_t row = 0; row < count; row += 64 * LANES) {
        const int64_t end = row + 64 * LANES < count ? row + 64 * LANES : count;
        vec grey = splat(0.0f); /* a short sum, so that float is enough */
        for (int64_t at = row; at < end; at += LANES) {
            const int lanes = end - at < LANES ? (int)(end - at) : LANES;
            vec c[3];
            for (int k = 0; k < 3; k++)
                c[k] = from_bytes ? load_bytes(p->pixels + k * count + at, lanes)
                                  : load(p->planes + k * count + at, lanes);
            for (int64_t s = first; s < last; s++)
                apply(c, p->operation[s], p->factor[s], mean);
            for (int k = 0; k < 3; k++)
                store(p->planes + k * count + at, c[k], lanes);
            vec value = luma(c);
            for (int lane = lanes; lane < LANES; lane++)
                value[lane] = 0;
            grey += value;
        }
        for (int lane = 0; lane < LANES; lane++)
            total += grey[lane];
    }
    return total;
}

static int64_t mirrored(int64_t at, int64_t size) { return at < 0 ? -at : at < size ? at : 2 * (size - 1) - at; }

/* The sum of rows (or of one row at several places) times the weights. */
INLINE void weigh(const struct crop *p, const float *const *rows, float *to) {
    for (int64_t x = 0; x < p->size; x += LANES) {
        const int lanes = p->size - x < LANES ? (int)(p->size - x) : LANES;
        vec sum = splat(0.0f);
        for (int64_t k = 0; k < p->taps; k++)
            sum += p->weight[k] * load(rows[k] + x, lanes);
        store(to + x, sum, lanes);
    }
}

/* One blurred row of a plane: down the columns into p->row, whose borders are then mirrored, and along it. */
static void blur_row(const struct crop *p, const float *plane, int64_t y, float *to) {
    const int64_t size = p->size, half = p->taps / 2;
    const float *rows[p->taps];
    float *row = p->row + half;
    for (int64_t k = 0; k < p->taps; k++)
        rows[k] = plane + mirrored(y + k - half, size) * size;
    weigh(p, rows, row);
    for (int64_t x = 1; x <= half; x++) {
        row[-x] = row[x];
        row[size - 1 + x] = row[size - 1 - x];
    }
    for (int64_t k = 0; k < p->taps; k++)
        rows[k] = row + k - half;
    weigh(p, rows, to);
}

void crop_finish(const struct crop *p) {
    const int64_t size = p->size, count = size * size;
    const float threshold = 128.0f / 255;
    int64_t first = 0;
    float mean = 0;
    for (int from_bytes = 1;; from_bytes = 0) { /* every pass but the first begins with its contrast */
        int64_t last = from_bytes ? first : first + 1;
        while (last < p->steps && p->operation[last] != CONTRAST)
            last++;
        const double grey = pass(p, from_bytes, first, last, mean);
        if (last == p->steps)
            break;
        mean = (float)(grey / count);
        first = last;
    }
    for (int64_t line = 0; line < 3 * size; line++) {
        const int64_t k = line / size;
        const float mean_k = p->mean[k], scale_k = 1.0f / p->deviation[k];
        float *to = p->out + line * size;
        const float *from = p->planes + line * size;
        if (p->taps) {
            blur_row(p, p->planes + k * count, line % size, to);
            from = to;
        }
        for (int64_t x = 0; x < size; x += LANES) {
            const int lanes = size - x < LANES ? (int)(size - x) : LANES;
            vec value = load(from + x, lanes);
            if (p->solarize)
                value = choose(value >= threshold, 1.0f - value, value);
            store(to + x, (value - mean_k) * scale_k, lanes);
        }
    }
}
