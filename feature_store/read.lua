-- Read chunks of sums of many series together with the positions that say which events are in them.
--
-- KEYS[1]   {ns:p}:meta            compared and read
-- KEYS[2]   {ns:p}:INC:dirty:FREQ  read
-- KEYS[3]   {ns:p}:INC:segments:FREQ     read, when segments is true
-- KEYS[4]   {ns:p}:INC:alert_levels:FREQ read, when levels is true
-- KEYS[5..] {ns:p}:INC:STATE:FREQ   read: as many as a.states, what is remembered of items, a hash a kind
-- KEYS[..]  {ns:p}:INC:sums:SERIES read
-- ARGV[1]   MessagePack: owner, incarnation, items {item_id}, fields {chunk}, sources (count): the fields of each
--           source stand together and are equally many; states (count), segments: whether KEYS[3] is asked for, levels: KEYS[4]
-- Returns   {'OK', flat meta, marks, flat segments, flat levels, for each of the states: states,
--            and for each source: chunks, texts} | {'FENCED'} | {'BEHIND'}
--           marks "12,,13": a mark or nothing for each item. states: one or nothing for each item, one a line.
--           chunks "0,1,7": which chunks stand, numbered through the chunks of the first series, of the second …;
--           texts: theirs, one a line. Few long strings: a client takes longer to read many short ones than Lua takes
--           to join them.
local a = cmsgpack.unpack(ARGV[1])
local stored = redis.call('HMGET', KEYS[1], 'owner', 'incarnation')
if not stored[1] or stored[2] ~= a.incarnation then return {'BEHIND'} end
if stored[1] ~= a.owner then return {'FENCED'} end

local PART = 1000
local function hmget(key, fields)
  local count = #fields
  if count == 0 then return {} end
  if count <= PART then return redis.call('HMGET', key, unpack(fields)) end
  local out = {}
  for from = 1, count, PART do
    local part = redis.call('HMGET', key, unpack(fields, from, math.min(from + PART - 1, count)))
    for i = 1, #part do out[from + i - 1] = part[i] end
  end
  return out
end

local marks = hmget(KEYS[2], a.items)
for i = 1, #marks do marks[i] = marks[i] or '' end

local reply = {'OK', redis.call('HGETALL', KEYS[1]), table.concat(marks, ','),
  a.segments and redis.call('HGETALL', KEYS[3]) or {}, a.levels and redis.call('HGETALL', KEYS[4]) or {}}
for s = 1, a.states do
  local states = hmget(KEYS[4 + s], a.items)
  for i = 1, #states do states[i] = states[i] or '' end
  reply[#reply + 1] = table.concat(states, '\n')
end

local each = #a.fields / a.sources
local chunks, texts = {}, {}
for s = 1, a.sources do chunks[s], texts[s] = {}, {} end
local first_series = 5 + a.states
for i = first_series, #KEYS do
  local found = hmget(KEYS[i], a.fields)
  local before = (i - first_series) * each
  for s = 1, a.sources do
    local own_chunks, own_texts, first = chunks[s], texts[s], (s - 1) * each
    for c = 1, each do
      local text = found[first + c]
      if text then
        own_chunks[#own_chunks + 1] = before + c - 1
        own_texts[#own_texts + 1] = text
      end
    end
  end
end

for s = 1, a.sources do
  reply[#reply + 1] = table.concat(chunks[s], ',')
  reply[#reply + 1] = table.concat(texts[s], '\n')
end
return reply
