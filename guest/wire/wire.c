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

long mux_parse(const uint8_t *bytes, size_t length, struct mux_frame *frame)
{
	if (length < MUX_HEADER)
		return WIRE_MORE;
	uint32_t payload = wire_u32(bytes + 4);
	uint16_t channel = wire_u16(bytes + 2);
	uint32_t most = bytes[0] == MUX_CONTROL ? MUX_MAX_CONTROL : MUX_MAX_DATA;
	if (bytes[0] < MUX_CONTROL || bytes[0] > MUX_LAST || bytes[1] || payload > most ||
	    (channel == 0) != (bytes[0] == MUX_CONTROL))
		return WIRE_BROKEN;
	if (length - MUX_HEADER < payload)
		return WIRE_MORE;
	*frame = (struct mux_frame){ bytes[0], channel, bytes + MUX_HEADER, payload };
	return (long)(MUX_HEADER + payload);
}

void mux_header(uint8_t *bytes, uint8_t type, uint16_t channel, uint32_t length)
{
	bytes[0] = type;
	bytes[1] = 0;
	wire_put_u16(bytes + 2, channel);
	wire_put_u32(bytes + 4, length);
}

int wire_parse(const uint8_t *bytes, size_t length, struct wire_message *message)
{
	if (length < MESSAGE_HEADER || length > MUX_MAX_CONTROL || bytes[1] || wire_u16(bytes + 2))
		return WIRE_BROKEN;
	*message = (struct wire_message){ bytes[0], wire_u32(bytes + 4), bytes + MESSAGE_HEADER, length - MESSAGE_HEADER };
	return 0;
}

int wire_next(const uint8_t *payload, size_t length, size_t *offset, struct wire_field *field)
{
	if (*offset >= length)
		return *offset == length ? 0 : WIRE_BROKEN;
	if (length - *offset < FIELD_HEADER)
		return WIRE_BROKEN;
	const uint8_t *head = payload + *offset;
	uint32_t size = wire_u32(head);
	if (wire_u16(head + 6) != 0 || size > length - *offset - FIELD_HEADER)
		return WIRE_BROKEN;
	field->tag = wire_u16(head + 4);
	field->bytes = head + FIELD_HEADER;
	field->length = size;
	*offset += FIELD_HEADER + size;
	return 1;
}

void wire_begin(struct wire_out *out, uint8_t *buffer, size_t capacity, uint8_t kind, uint32_t number)
{
	out->bytes = buffer;
	out->capacity = capacity;
	out->length = MESSAGE_HEADER;
	out->full = capacity < MESSAGE_HEADER;
	if (out->full)
		return;
	memset(buffer, 0, MESSAGE_HEADER);
	buffer[0] = kind;
	wire_put_u32(buffer + 4, number);
}

void wire_add(struct wire_out *out, uint16_t tag, const void *bytes, size_t length)
{
	if (out->full || out->capacity - out->length < FIELD_HEADER ||
	    out->capacity - out->length - FIELD_HEADER < length) {
		out->full = 1;
		return;
	}
	uint8_t *head = out->bytes + out->length;
	wire_put_u32(head, (uint32_t)length);
	wire_put_u16(head + 4, tag);
	wire_put_u16(head + 6, 0);
	if (length)
		memcpy(head + FIELD_HEADER, bytes, length);
	out->length += FIELD_HEADER + length;
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

size_t wire_end(const struct wire_out *out)
{
	return out->full || out->length > MUX_MAX_CONTROL ? 0 : out->length;
}
