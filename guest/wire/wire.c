#include "wire.h"

#include <string.h>

uint16_t wire_u16(const uint8_t *b)
{
	return (uint16_t)(b[0] | (uint16_t)b[1] << 8);
}

uint32_t wire_u32(const uint8_t *b)
{
	return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

uint64_t wire_u64(const uint8_t *b)
{
	return (uint64_t)wire_u32(b) | (uint64_t)wire_u32(b + 4) << 32;
}

void wire_put_u16(uint8_t *b, uint16_t value)
{
	b[0] = (uint8_t)value;
	b[1] = (uint8_t)(value >> 8);
}

void wire_put_u32(uint8_t *b, uint32_t value)
{
	wire_put_u16(b, (uint16_t)value);
	wire_put_u16(b + 2, (uint16_t)(value >> 16));
}

void wire_put_u64(uint8_t *b, uint64_t value)
{
	wire_put_u32(b, (uint32_t)value);
	wire_put_u32(b + 4, (uint32_t)(value >> 32));
}

long wire_parse(const uint8_t *bytes, size_t length, struct wire_frame *frame)
{
	size_t skipped = 0;

	while (skipped < length && bytes[skipped] == 0)
		skipped++;
	if (length - skipped < WIRE_HEADER)
		return length > skipped && bytes[skipped] != WIRE_MAGIC ? WIRE_BROKEN : WIRE_MORE;
	const uint8_t *head = bytes + skipped;
	uint32_t payload = wire_u32(head + 8);
	if (head[0] != WIRE_MAGIC || wire_u16(head + 2) != 0 || payload > WIRE_MAX_PAYLOAD)
		return WIRE_BROKEN;
	if (length - skipped - WIRE_HEADER < payload)
		return WIRE_MORE;
	frame->kind = head[1];
	frame->number = wire_u32(head + 4);
	frame->payload = head + WIRE_HEADER;
	frame->length = payload;
	return (long)(skipped + WIRE_HEADER + payload);
}

int wire_next(const uint8_t *payload, size_t length, size_t *offset, struct wire_field *field)
{
	if (*offset >= length)
		return *offset == length ? 0 : WIRE_BROKEN;
	if (length - *offset < WIRE_FIELD_HEADER)
		return WIRE_BROKEN;
	const uint8_t *head = payload + *offset;
	uint32_t size = wire_u32(head);
	if (wire_u16(head + 6) != 0 || size > length - *offset - WIRE_FIELD_HEADER)
		return WIRE_BROKEN;
	field->tag = wire_u16(head + 4);
	field->bytes = head + WIRE_FIELD_HEADER;
	field->length = size;
	*offset += WIRE_FIELD_HEADER + size;
	return 1;
}

long stream_parse(const uint8_t *bytes, size_t length, struct stream_frame *frame)
{
	if (length < STREAM_HEADER)
		return WIRE_MORE;
	uint32_t payload = wire_u32(bytes + 4);
	if (bytes[0] < STREAM_IN || bytes[0] > STREAM_EXIT || bytes[1] || bytes[2] || bytes[3] ||
	    payload > STREAM_MAX_PAYLOAD)
		return WIRE_BROKEN;
	if (length - STREAM_HEADER < payload)
		return WIRE_MORE;
	frame->type = bytes[0];
	frame->payload = bytes + STREAM_HEADER;
	frame->length = payload;
	return (long)(STREAM_HEADER + payload);
}

void wire_begin(struct wire_out *out, uint8_t *buffer, size_t capacity, uint8_t kind, uint32_t number)
{
	out->bytes = buffer;
	out->capacity = capacity;
	out->length = WIRE_HEADER;
	out->full = capacity < WIRE_HEADER;
	if (out->full)
		return;
	memset(buffer, 0, WIRE_HEADER);
	buffer[0] = WIRE_MAGIC;
	buffer[1] = kind;
	wire_put_u32(buffer + 4, number);
}

void wire_add(struct wire_out *out, uint16_t tag, const void *bytes, size_t length)
{
	if (out->full || out->capacity - out->length < WIRE_FIELD_HEADER ||
	    out->capacity - out->length - WIRE_FIELD_HEADER < length) {
		out->full = 1;
		return;
	}
	uint8_t *head = out->bytes + out->length;
	wire_put_u32(head, (uint32_t)length);
	wire_put_u16(head + 4, tag);
	wire_put_u16(head + 6, 0);
	if (length)
		memcpy(head + WIRE_FIELD_HEADER, bytes, length);
	out->length += WIRE_FIELD_HEADER + length;
}

void wire_add_text(struct wire_out *out, uint16_t tag, const char *text)
{
	wire_add(out, tag, text, strlen(text));
}

void wire_add_u32(struct wire_out *out, uint16_t tag, uint32_t value)
{
	uint8_t bytes[4];

	wire_put_u32(bytes, value);
	wire_add(out, tag, bytes, sizeof bytes);
}

void wire_add_u64(struct wire_out *out, uint16_t tag, uint64_t value)
{
	uint8_t bytes[8];

	wire_put_u64(bytes, value);
	wire_add(out, tag, bytes, sizeof bytes);
}

size_t wire_end(struct wire_out *out)
{
	if (out->full || out->length - WIRE_HEADER > WIRE_MAX_PAYLOAD)
		return 0;
	wire_put_u32(out->bytes + 8, (uint32_t)(out->length - WIRE_HEADER));
	return out->length;
}

void stream_header(uint8_t *bytes, uint8_t type, uint32_t length)
{
	memset(bytes, 0, STREAM_HEADER);
	bytes[0] = type;
	wire_put_u32(bytes + 4, length);
}
