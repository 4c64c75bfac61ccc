"""Word lists of the rules. Data only: what a list is used for is said where it is used."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP: Final = _words("""
a about above after again all also always am an and any anyone anything are aren't around as at away back be because
been before being below between both but by bye can can't could couldn't did didn't do does doesn't doing don't done
down during each either else even ever every everyone everything few finally first for from further get gets getting
go goes going gonna gone got gotta had hadn't has hasn't have haven't having he he's her here here's hers herself hey
hi him himself his how how's however i i'd i'll i'm i've if in instead into is isn't it it'd it'll it's its itself
just kind kinda last let let's like lot lots made make makes making many may maybe me might mine more most much must
my myself need never next no none nor not nothing now of off oh ok okay on once one ones only onto or other our ours
ourselves out over own perhaps pretty put quite rather really right said same say says shall she she's should
shouldn't since so some someone something soon sort still such super sure take taken takes taking than that that's the
their theirs them themselves then there there's these they they'd they'll they're they've thing things think this
those though through thus till to together too took toward towards under until up upon us usually very via was wasn't
way we we'd we'll we're we've well went were weren't what what's when when's where where's whether which while who
who's whole whom whose why why's will with within without won't would wouldn't yeah yep yes yet you you'd you'll
you're you've your yours yourself people others come comes coming want wants wanted asked answered shared photo photos
picture pic
""")
"""Words that carry no content of their own. Negation and tense are read separately, before these are dropped."""

SMALL_TALK: Final = _words("""
absolutely adorable agree agreed aha ahh amazing amazingly appreciate appreciated ask asking aw awesome aww awww
beautiful best better bless bravo brilliant care catch charming chat cheers classic congrats congratulations cool
crazy cute damn day days dear definitely delighted details evening exactly excellent excited exciting fab fabulous
fair fantastic fascinating feel feeling feels fine fingers crossed folks forward friend friendship fun funny gentleman
girl glad glorious goal god good goodbye goodnight gorgeous gosh grateful great greetings guess guy guys ha haha
hahaha happen happened happens happy hear hearing hello help helpful hmm honestly hooray hope hoping huge huh hug hugs
idea impressed impressive incredible indeed insane inspiration inspirational inspire inspires inspiring interesting
job jealous keep keeping killing kind kinda kindness know later laugh let lol look looking looks lovely love loved
loving luck lucky luv mad man mate matter mean means mention message mind miss missed moment morning nah neat news new
nice night nicely noble nope ouch pass perfect phew photo photos pic pics picture pity please pleased plenty pleasure
poor posted powerful precious problem progress promise proud radiant rad respect rest rock rocks rotten sad sadly safe
say scratch see seeing seem seems serious seriously share sharing shame shucks sight silly sleep sorry sound sounds
special spill beans spirit stay stoked story stranger strong stunning stuff suggestions super support sure surprise
sweet swell take talk talked talking terrible terrific tell telling thank thankful thanks thoughts thrilled tidy time
times totally tough touching true truly ugh unbelievable understand understood update wait welcome whoa wish wishes
wishing wonderful woah woohoo words work world worries worry wow actually almost forget long ya yay yikes yippee yo
you're yup whew blast peace hard easy difficult wise well-deserved
""")
"""A sentence made of these (and of function words and names) is a greeting, a thank-you or a reaction."""

OPENERS: Final = _words("""
wow oh ooh aw aww yeah yep yup yes ok okay well so haha hey hi hello thanks anyway btw fyi right also honestly hmm ah
aha phew true absolutely totally definitely exactly indeed sadly funny nice great cool awesome sorry perfect look
listen nah lol ugh gosh
""")
"""Words that may open a sentence, before a comma, without changing what it says. `no` and `actually` are not among them."""

ANAPHORS: Final = _words("""
it it's its it'll it'd they they're they've they'll they'd them their that that's this these those she she's she'll
she'd he he's he'll he'd her his him then there here both such mine ours
""")
"""A sentence that starts with one of these leans on the sentence before it."""

CONNECTORS: Final = _words(
    "and but so because plus then or especially which otherwise 'cause cause cos though although whereas therefore"
)

FRAGMENT_STARTS: Final = _words("""
in on at near by from with to for since because every about around during until till between under over inside mostly
mainly only once twice sometimes somewhere like as than of through without within after before
""")
"""Prepositions and the like: a sentence that starts with one and has no clause of its own answers the question before it."""

AUXILIARIES: Final = _words("""
am is are was were be been being have has had do does did will would can could should shall may might must 's 're 've
'm 'll 'd don't doesn't didn't isn't aren't wasn't weren't haven't hasn't hadn't won't wouldn't can't couldn't
shouldn't mustn't cannot gonna
""")

QUESTION_STARTS: Final = AUXILIARIES | _words("""
what what's which who who's whom whose where where's when when's why why's how how's how're whatcha any anything
anyone wanna ever got care mind remember need want what've how'd where'd what're
""")

TAGS: Final = _words("right huh eh ok okay yeah yes no remember true")
"""A statement may end in a comma, one of these and a question mark."""

ADVERBS: Final = _words("""
really just also still always never already finally actually definitely totally recently usually often sometimes only
even currently now probably certainly honestly truly absolutely simply barely hardly nearly almost mostly generally
normally occasionally rarely ever once then soon later kinda literally basically obviously clearly sadly luckily
fortunately accidentally officially quickly slowly seriously especially both all genuinely deeply strongly mainly
regularly first never-ever
""")
"""May stand between the subject and its verb."""

MODALS: Final = _words("""
can can't cannot could couldn't should shouldn't would wouldn't will won't may might must mustn't shall ought used
dare needn't
""")

_PAST = """
was:be were:be went:go had:have did:do said:say made:make got:get took:take came:come saw:see knew:know thought:think
gave:give found:find told:tell became:become left:leave felt:feel brought:bring began:begin kept:keep held:hold
wrote:write stood:stand heard:hear meant:mean met:meet ran:run paid:pay sat:sit spoke:speak led:lead grew:grow
lost:lose fell:fall sent:send built:build understood:understand drew:draw broke:break spent:spend drove:drive
bought:buy wore:wear chose:choose ate:eat taught:teach caught:catch fought:fight threw:throw flew:fly slept:sleep
sang:sing swam:swim won:win woke:wake rode:ride sold:sell forgot:forget forgave:forgive hid:hide bit:bite blew:blow
drank:drink rose:rise stole:steal shook:shake sank:sink stuck:stick struck:strike swore:swear tore:tear froze:freeze
dealt:deal dug:dig fed:feed hung:hang laid:lay lit:light rang:ring sought:seek shot:shoot shone:shine slid:slide
spun:spin swept:sweep wept:weep bent:bend bound:bind bred:breed burnt:burn crept:creep dreamt:dream knelt:kneel
leant:lean leapt:leap learnt:learn lent:lend overcame:overcome sewed:sew spilt:spill spoilt:spoil sprang:spring
stung:sting withdrew:withdraw wound:wind underwent:undergo misunderstood:misunderstand rebuilt:rebuild gone:go done:do
seen:see known:know given:give taken:take written:write spoken:speak grown:grow fallen:fall broken:break driven:drive
chosen:choose eaten:eat thrown:throw flown:fly sung:sing swum:swim woken:wake ridden:ride forgotten:forget hidden:hide
drawn:draw worn:wear begun:begin been:be
"""
IRREGULAR_PAST: Final[dict[str, str]] = dict(pair.split(":") for pair in _PAST.split())
"""Irregular past forms and participles, and their base forms."""

SAME_IN_PAST: Final = _words("put cut let hit set read cost hurt quit shut bet beat split spread burst cast upset")

BASE_VERBS: Final = frozenset(IRREGULAR_PAST.values()) - {"be", "have", "do"} | _words("""
accept ache act adapt add admire admit adopt adore advise afford agree aim allow annoy answer apologise apologize
appear apply appreciate approach argue arrange arrive ask assume attend avoid awake bake bathe believe belong blame
bike blog boil book borrow bounce breathe brew brush call camp care carry celebrate change chat check cheer clean
climb close coach collect combine commute compete complain complete compose connect consider contact continue control
cook cope copy count cover craft crave create cross cry cycle dance decide decorate dedicate deliver depend describe
deserve design despise destroy detest develop die direct disagree discover dislike donate doubt draft dream dress drop
earn edit embrace emigrate encourage end enjoy enter escape exercise exist expect explain explore express face fail
fancy fear film finish fish fit fix focus follow garden gather go graduate guess handle happen hate head heal help
hesitate hike hire hope host hug hum hunt imagine improve include insist inspire intend invest invite iron jog join
joke juggle jump kick kiss knit knock lack laugh learn leave lift like listen live look love manage marry matter
meditate mentor mind miss mix move moderate need notice observe offer open order organise organize overthink own pack
paint park participate pass pick plan plant play practice practise pray prefer prepare pretend produce program promise
promote protect publish pull push question race raise reach realise realize recall receive recommend record recycle
refuse regret rehearse relate relax rely remain remember remind remove rent repair repeat reply report represent
rescue research respect respond rest restore retire return review row run sail save schedule score search seem
separate serve share shave shop shout show sketch ski skip smell smile smoke snore solve sound stare start starve stay
stop stream stress stretch struggle study suffer suggest support suppose surf suspect survive talk tend test text
thank tidy tour train transfer translate travel treasure treat trust try turn tutor type use value visit volunteer
vote wait walk want wash waste watch water wear wish wonder work worry worship wrap yearn get make take come see know
think give find tell
""")
"""Verbs that may be put into the third person."""

OCCUPATIONS: Final = _words("""
accountant actor actress architect archivist artist assistant astronaut author baker banker barber barista bartender
beekeeper biologist blacksmith bookkeeper bookseller botanist bricklayer broker builder butcher caretaker carer
carpenter cashier chef chemist childminder cleaner clerk coach coder comedian composer conductor consultant cook
copywriter counselor counsellor courier curator dancer dentist designer detective developer dietitian diplomat
director doctor dramaturg driver economist editor electrician engineer entrepreneur estate-agent farmer firefighter
fisherman florist footballer gardener geologist goldsmith guard guide hairdresser headteacher historian illustrator
instructor intern interpreter janitor jeweller journalist judge labourer landscaper lawyer lecturer librarian
lifeguard linguist locksmith machinist manager marketer mason massage-therapist mathematician mechanic midwife miner
model musician nanny nurse nutritionist officer optician painter paralegal paramedic pastor pharmacist photographer
physician physicist physiotherapist pianist pilot plumber poet police-officer politician porter postman potter
principal producer professor programmer psychiatrist psychologist publisher realtor receptionist recruiter reporter
researcher roofer sailor salesman salesperson saleswoman scientist sculptor secretary seamstress singer social-worker
soldier solicitor statistician stylist supervisor surgeon surveyor tailor teacher technician tester therapist trainer
translator tutor undertaker vet veterinarian violinist waiter waitress weaver webmaster welder writer zookeeper
trainee apprentice student analyst administrator
""")

HOBBIES: Final = _words("""
actor actress artist author bookkeeper coach coder comedian composer cook dancer designer driver fisherman footballer gardener guide
historian judge model musician painter philosopher photographer pianist pilot poet potter producer sailor sculptor singer student
violinist volunteer weaver writer
""")
"""What people also call themselves in their free time: an occupation only when they "work as" it."""

WORKPLACES: Final = _words("""
agency airline airport archive archives bakery bank bar bookshop bookstore brewery brand café cafe centre center
charity church cinema circus clinic club company consultancy corporation council court daycare department dispensary
embassy factory farm firm florist foundation gallery garage garden gym hospital hospice hostel hotel institute
kindergarten lab laboratory library magazine ministry museum newspaper nursery office orchestra pharmacy plant police
practice press prison publisher radio restaurant salon school shelter shop start-up startup station store studio
supermarket theatre theater university warehouse workshop zoo college academy
""")

EVENTS: Final = _words("""
appointment audition barbecue bbq birthday brunch ceremony check-up checkup class competition concert conference
course deadline defence defense delivery dinner exam exhibition fair festival final flight game gig graduation hearing
holiday inspection interview launch lecture lesson lunch marathon match meeting meetup opening party performance
picnic play presentation premiere procedure race reading recital rehearsal release reunion ride seminar session shift
show sleepover surgery talk tournament trip vacation viewing visit wedding workshop screening funeral christening
baptism tryout tryouts training practice webinar
""")

FAMILY: Final = _words("""
mother father mum mom dad sister brother son daughter wife husband partner girlfriend boyfriend fiancé fiancée fiance
fiancee aunt uncle cousin niece nephew grandma grandpa grandmother grandfather gran granny grandson granddaughter boss
roommate flatmate housemate neighbour neighbor twin stepson stepdaughter stepmother stepfather mentor landlord
landlady colleague coworker
""")

PETS: Final = _words("""
dog puppy pup cat kitten kitty rabbit bunny hamster parrot budgie canary goldfish fish turtle tortoise horse pony
guinea-pig lizard snake beagle whippet labrador poodle terrier retriever collie spaniel dachshund bulldog chihuahua
husky dalmatian greyhound corgi pug
""")

INSTRUMENTS: Final = _words("""
accordion banjo bass bassoon bongos cello clarinet cornet drums flute guitar harmonica harp harpsichord horn keyboard
keyboards lute mandolin oboe organ percussion piano recorder sax saxophone trombone trumpet tuba ukulele viola violin
xylophone
""")

LANGUAGES: Final = _words("""
Arabic Bengali Bulgarian Cantonese Catalan Chinese Croatian Czech Danish Dutch English Esperanto Estonian Finnish
French Gaelic German Greek Hebrew Hindi Hungarian Icelandic Indonesian Irish Italian Japanese Korean Latin Latvian
Lithuanian Malay Mandarin Norwegian Persian Polish Portuguese Punjabi Romanian Russian Serbian Slovak Slovenian
Spanish Swahili Swedish Tamil Thai Turkish Ukrainian Urdu Vietnamese Welsh Yoruba
""")

QUESTION_WORDS: Final = _words("""
when where who whom whose what which why how did does do is are was were kind type name date year time many long often much recently
currently ever sort
""")
"""Words of a question that say nothing about what it asks for."""

NOT_NAMES: Final = _words("""
ticket tickets train flight flying booked signed going go move moving have having entry planned planning attending book sign big next
first second our my new
""")
"""Words before an event noun that do not tell one event from another."""

STANDING: Final = _words("""
kid kids child children fam family friend friends people life home house work job year years week weekend month mom dad husband wife
partner son daughter lot bit couple part way thing place heart body own time day moment side first last same experience
journey community story stories path
""")
"""What is always there: "my family" refers to no statement in particular."""

LIGHT: Final = _words("""
sign signed book booked plan planning join joined start started buy bought get got adopt adopted register registered enrol enrolled
reserve reserved going flying doing take taking own have attend attending run running entered ordered rent rented lease leased work
working play playing sing learn learning study studying train practise practice go live living use using room ticket every week weekly
evening morning afternoon night day monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays
fridays saturdays sundays january february march april june july august september october november december still really currently
instead
""")
"""Words that do not say what a statement is about: beginnings, habits and dates."""

BARE_OPENERS: Final = _words("oh wow yeah yep yup haha hey hi btw fyi lol")
"""Openers that need no comma after them."""

CUTS: Final = _words("because when which who but so while - – — since although where")
"""An answer ends before one of these."""
